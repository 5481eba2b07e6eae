"""Build a workflow in ComfyUI's saved format (version 0.4), node by node, in columns.

The schemas provide the order of inputs and values, the defaults and the types. A definition states only the values
that it changes.
"""

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from magicdistill_core.errors import ConfigError

from .models import ModelFile
from .schemas import Input, Schema, find_schema, types_fit

# As narrow as the texts allow. The old page hides texts that become too small when a full workflow is in view.
WIDTH, GAP = 310, 50
_TITLE, _SLOT = 30, 20
# Widgets are higher on the new page. On the old page the control after a seed is one more widget.
_WIDGET_NEW, _WIDGET_OLD, _TEXT_FIELD, _FOOT, _ADVANCED = 28, 24, 100, 38, 28
_GROUP_PAD, _GROUP_HEAD = 20, 44
_LINE, _LETTER, _NOTE_EDGE = 18, 6, 50
_INPUT_NODE, _OUTPUT_NODE = -10, -20
_OPTIONAL_SHAPE = 7
# The page's name for the pictures that a node shows after a run.
_PICTURES = "$$canvas-image-preview"
_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/magicdistillation/magicdistillation/workflows")


@dataclass(frozen=True)
class Wire:
    """The source of a link: an output of a node, or an input of the surrounding subgraph.

    Attributes:
        node: id of the node; -10 for an input of the subgraph.
        slot: index of the output or input, from 0.
        type: ComfyUI's type of the value, such as `LATENT`.
    """

    node: int
    slot: int
    type: str


@dataclass
class Node:
    """One node on the canvas.

    Attributes:
        id: the node's number in its graph, from 1.
        type: type of the node; for a subgraph its id.
        title: text in the node's head; None shows its display name in the page's language.
        inputs: the inputs in the saved format.
        outputs: the outputs in the saved format.
        values: values of the widgets, in their order.
        properties: the node's properties in the saved format.
        size: width and height in pixels.
        pos: x and y of the upper left corner below the title, in pixels.
        colours: colours in the saved format; empty for the default ones.
    """

    id: int
    type: str
    title: str | None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    values: list[Any]
    properties: dict[str, Any]
    size: tuple[int, int]
    pos: tuple[int, int] = (0, 0)
    colours: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Wire:
        """Source of a link from the first output."""
        return self.output(0)

    def output(self, which: int | str) -> Wire:
        """Return the source of a link from an output.

        Args:
            which: the output's index, from 0, or its name.
        """
        names = [one["name"] for one in self.outputs]
        slot = names.index(which) if isinstance(which, str) else which
        return Wire(self.id, slot, self.outputs[slot]["type"])

    def to_json(self, order: int) -> dict[str, Any]:
        """Return the node in the saved format.

        Args:
            order: place of the node in the order of execution, from 0.
        """
        return {
            "id": self.id,
            "type": self.type,
            "pos": list(self.pos),
            "size": list(self.size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": self.inputs,
            "outputs": self.outputs,
            **({} if self.title is None else {"title": self.title}),
            "properties": self.properties,
            "widgets_values": self.values,
            **self.colours,
        }


class Graph:
    """Nodes in columns from left to right, the links between them, and groups around the columns."""

    def __init__(self, name: str, schemas: Mapping[str, Schema]) -> None:
        """Start an empty graph.

        Args:
            name: name of the workflow or subgraph; determines its id.
            schemas: schemas of a running ComfyUI by node type, from `parse_schemas`.
        """
        self.name = name
        self.id = str(uuid.uuid5(_UUIDS, name))
        self.nodes: list[Node] = []
        self.groups: list[dict[str, Any]] = []
        self.subgraphs: list[Subgraph] = []
        self.links: list[tuple[Wire, int, int]] = []
        self._schemas = schemas
        self._x, self._y, self._width = -(WIDTH + GAP), 0, WIDTH
        self._begun: tuple[str | None, int] = (None, 0)

    @contextmanager
    def column(self, title: str | None = None, width: int = WIDTH) -> Iterator[None]:
        """Put the nodes added inside the context into a new column, to the right of the last one.

        Args:
            title: title of a group around the column; None for no group.
            width: width of the column's nodes in pixels.
        """
        self._x, self._y, self._width = self._x + self._width + GAP, 0, width
        self._begun = (title, self._y)
        yield
        self._end_group()

    def section(self, title: str) -> None:
        """End the column's group, and begin another group with this title below it."""
        self._end_group()
        self._y += _GROUP_PAD + _GROUP_HEAD
        self._begun = (title, self._y)

    def _end_group(self) -> None:
        title, top = self._begun
        if title is not None:
            # A node's title is above its position.
            bounds = [self._x - _GROUP_PAD, top - _TITLE - _GROUP_HEAD]
            bounds += [self._width + 2 * _GROUP_PAD, self._y - top + _GROUP_HEAD + _GROUP_PAD - _TITLE]
            group = {"id": len(self.groups) + 1, "title": title, "bounding": bounds, "color": "#3f789e", "flags": {}}
            self.groups.append(group)

    def node(
        self, node_type: str, title: str | None = None, models: tuple[ModelFile, ...] = (), room: int = 0, **given: Any
    ) -> Node:
        """Add a node below the last one of the column, and return it.

        Args:
            node_type: type of the node.
            title: title on the node; None takes its display name.
            models: files named in its widgets, with their download URLs.
            room: extra height in pixels for texts or previews that the node shows after a run.
            given: by input, its value or the source of its link: a `Wire`, or a node for its first output.

        Raises:
            ConfigError: if this ComfyUI does not have the node or an input, or if a value or a link's type is invalid.
        """
        schema = find_schema(self._schemas, node_type)
        self._check_given(schema, given, {one.name for one in models})
        inputs = [_slot(one) for one in (*schema.sockets, *schema.widgets)]
        outputs = [{"name": one.name, "type": one.type, "links": []} for one in schema.outputs]
        values: list[Any] = []
        for one in schema.widgets:
            value = given.get(one.name, one.default)
            values.append(one.default if isinstance(value, Node | Wire) else value)
            values += [one.control] if one.control else []
            values += ["image"] if one.uploads else []
        properties: dict[str, Any] = {"Node name for S&R": node_type}
        links = [one.to_json() for one in models if one.url is not None]
        if links:
            properties["models"] = links
        height = _height(schema) + room
        node = self._add(node_type, title, inputs, outputs, values, properties, height)
        self._connect(node, given)
        return node

    def note(self, text: str, title: str = "Read me") -> None:
        """Add a Markdown note, with the height of its text, below the last node of the column.

        Args:
            text: the note in Markdown.
            title: title on the note.
        """
        text = text.strip()
        lines = sum(_LINE * -(-len(line) * _LETTER // self._width) or _LINE for line in _paragraphs(text))
        node = self._add("MarkdownNote", title, [], [], [text + "\n"], {}, lines + _NOTE_EDGE)
        node.colours = {"color": "#432", "bgcolor": "#653"}

    def subgraph(self, name: str) -> "Subgraph":
        """Return an empty subgraph with this name. Fill it, then add it with `place`."""
        return Subgraph(name, self._schemas)

    def place(self, subgraph: "Subgraph", title: str | None = None, room: int = 0, **given: Node | Wire) -> Node:
        """Add a node for a subgraph below the last node of the column, and return it.

        Args:
            subgraph: the subgraph.
            title: title on the node; None takes the subgraph's name.
            room: extra height in pixels.
            given: by input, the source of its link, as in `node`.
        """
        if subgraph not in self.subgraphs:
            self.subgraphs.append(subgraph)
        inputs = [dict(one) for one in subgraph.slots]
        outputs = [{"name": name, "type": wire.type, "links": []} for name, wire in subgraph.ports]
        sockets = sum("widget" not in one for one in inputs)
        height = max(sockets, len(outputs)) * _SLOT + (len(inputs) - sockets) * _WIDGET_NEW + _FOOT + room
        properties: dict[str, Any] = {"proxyWidgets": [list(one) for one in subgraph.shown]}
        if subgraph.previews:
            properties["previewExposures"] = subgraph.previews
        values = list(subgraph.values)
        node = self._add(subgraph.id, title or subgraph.name, inputs, outputs, values, properties, height)
        self._connect(node, given)
        return node

    def to_json(self) -> dict[str, Any]:
        """Return the workflow in the saved format."""
        return {
            "id": self.id,
            "revision": 0,
            "last_node_id": max(node.id for node in self.nodes),
            "last_link_id": len(self.links),
            "nodes": [node.to_json(order) for order, node in enumerate(self.nodes)],
            "links": [
                [number, wire.node, wire.slot, target, slot, self._type_at(target, slot)]
                for number, (wire, target, slot) in enumerate(self.links, 1)
            ],
            "groups": self.groups,
            **({"definitions": {"subgraphs": [one.to_json() for one in self.subgraphs]}} if self.subgraphs else {}),
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [120, 140]}},
            "version": 0.4,
        }

    def _add(
        self,
        node_type: str,
        title: str | None,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
        values: list[Any],
        properties: dict[str, Any],
        height: int,
    ) -> Node:
        size = (self._width, height)
        node = Node(len(self.nodes) + 1, node_type, title, inputs, outputs, values, properties, size)
        node.pos = (self._x, self._y)
        self._y += height + _TITLE + _GROUP_PAD
        self.nodes.append(node)
        return node

    def _check_given(self, schema: Schema, given: Mapping[str, Any], files: set[str]) -> None:
        known = {one.name: one for one in schema.inputs}
        if unknown := set(given) - set(known):
            raise ConfigError(f"{self.name}: {schema.type} has no input {sorted(unknown)}. Expected {sorted(known)}.")
        for name, one in known.items():
            value = given.get(name, one.default if one.is_widget else None)
            if isinstance(value, Node | Wire):
                continue
            if not one.is_widget:
                if one.required:
                    raise ConfigError(f"{self.name}: the input {name} of {schema.type} is not connected.")
            elif value not in files and not one.uploads and (fault := one.fault_of(value)):
                raise ConfigError(f"{self.name}: {name} of {schema.type}: {fault}.")

    def _connect(self, node: Node, given: Mapping[str, Any]) -> None:
        slots = [one["name"] for one in node.inputs]
        for name, value in given.items():
            if not isinstance(value, Node | Wire):
                continue
            wire = value.out if isinstance(value, Node) else value
            slot = slots.index(name)
            if not types_fit(wire.type, node.inputs[slot]["type"]):
                raise ConfigError(f"{self.name}: {name} of {node.title or node.type} does not accept {wire.type}.")
            self._link(wire, node.id, slot)
            node.inputs[slot]["link"] = len(self.links)

    def _link(self, wire: Wire, target: int, slot: int) -> None:
        self.links.append((wire, target, slot))
        if wire.node != _INPUT_NODE:
            self._by_id(wire.node).outputs[wire.slot]["links"].append(len(self.links))

    def _by_id(self, node_id: int) -> Node:
        return self.nodes[node_id - 1]

    def _type_at(self, target: int, slot: int) -> str:
        wire = next(wire for wire, node, place in self.links if (node, place) == (target, slot))
        return wire.type


class Subgraph(Graph):
    """A graph that another graph uses as one node. It can show widgets of its inner nodes on the outer node.

    Attributes:
        slots: the inputs of the outer node, in the saved format.
        ports: name and inner source of each output.
        shown: inner node id and name of each widget shown on the outer node.
        values: the inner values of these widgets.
        previews: the inner nodes whose pictures the outer node shows, in the saved format.
        facts: more fields of the saved subgraph, such as `category` and `description` of a blueprint.
    """

    def __init__(self, name: str, schemas: Mapping[str, Schema]) -> None:
        """Start an empty subgraph; arguments as for `Graph`."""
        super().__init__(name, schemas)
        self.slots: list[dict[str, Any]] = []
        self.ports: list[tuple[str, Wire]] = []
        self.shown: list[tuple[str, str]] = []
        self.values: list[Any] = []
        self.previews: list[dict[str, str]] = []
        self.facts: dict[str, str] = {}

    def add_input(self, name: str, type_: str, optional: bool = False) -> Wire:
        """Add an input to the subgraph, and return the source of links from it.

        Args:
            name: the input's name.
            type_: ComfyUI's type of the input, such as `LATENT`.
            optional: whether the inner nodes run without it.
        """
        shape = {"shape": _OPTIONAL_SHAPE} if optional else {}
        self.slots.append({"name": name, "type": type_, "link": None, **shape})
        return Wire(_INPUT_NODE, len(self.slots) - 1, type_)

    def show_widget(self, node: Node, widget: str) -> None:
        """Show an inner node's widget on the outer node, where it also accepts links.

        Args:
            node: the inner node.
            widget: name of the widget.
        """
        slot = next(place for place, one in enumerate(node.inputs) if one["name"] == widget)
        type_ = node.inputs[slot]["type"]
        self.slots.append({"name": widget, "type": type_, "widget": {"name": widget}, "link": None})
        self._link(Wire(_INPUT_NODE, len(self.slots) - 1, type_), node.id, slot)
        node.inputs[slot]["link"] = len(self.links)
        self.shown.append((str(node.id), widget))
        schema = find_schema(self._schemas, node.type)
        self.values.append(schema.values_of(node.values)[widget])

    def show_pictures(self, node: Node) -> None:
        """Show the pictures of an inner *Preview Image* on the outer node after a run, in the page's modern design.

        Videos cannot be shown there: the page loads the video of an inner node as an image.
        """
        self.previews.append({"name": _PICTURES, "sourceNodeId": str(node.id), "sourcePreviewName": _PICTURES})

    def add_output(self, name: str, wire: Wire) -> None:
        """Add an output to the subgraph.

        Args:
            name: the output's name.
            wire: its source inside the subgraph.
        """
        self.ports.append((name, wire))

    def to_json(self) -> dict[str, Any]:
        """Return the subgraph in the saved format of a workflow's definitions."""
        links = [
            {
                "id": number,
                "origin_id": wire.node,
                "origin_slot": wire.slot,
                "target_id": target,
                "target_slot": slot,
                "type": wire.type,
            }
            for number, (wire, target, slot) in enumerate(self.links, 1)
        ]
        nodes = [node.to_json(order) for order, node in enumerate(self.nodes)]
        outputs = []
        for slot, (name, wire) in enumerate(self.ports):
            number = len(links) + 1
            link = {"id": number, "origin_id": wire.node, "origin_slot": wire.slot, "target_id": _OUTPUT_NODE}
            links.append(link | {"target_slot": slot, "type": wire.type})
            nodes[wire.node - 1]["outputs"][wire.slot]["links"].append(number)
            outputs.append({"id": self._port("out", name), "name": name, "type": wire.type, "linkIds": [number]})
        inputs = [
            {
                "id": self._port("in", one["name"]),
                "name": one["name"],
                "type": one["type"],
                "linkIds": [link["id"] for link in links if (link["origin_id"], link["origin_slot"]) == (-10, slot)],
            }
            for slot, one in enumerate(self.slots)
        ]
        right = max(node.pos[0] + node.size[0] for node in self.nodes) + GAP
        state = {"lastGroupId": len(self.groups), "lastNodeId": len(self.nodes), "lastLinkId": len(links)}
        return {
            "id": self.id,
            "version": 1,
            "state": state | {"lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            **self.facts,
            "inputNode": {"id": _INPUT_NODE, "bounding": [-220, 0, 120, 40 + _SLOT * len(inputs)]},
            "outputNode": {"id": _OUTPUT_NODE, "bounding": [right, 0, 120, 40 + _SLOT * len(outputs)]},
            "inputs": inputs,
            "outputs": outputs,
            "widgets": [],
            "nodes": nodes,
            "groups": self.groups,
            "links": links,
            "extra": {},
        }

    def _port(self, side: str, name: str) -> str:
        return str(uuid.uuid5(_UUIDS, f"{self.name}/{side}/{name}"))


def _slot(one: Input) -> dict[str, Any]:
    """Return an input in the saved format."""
    slot: dict[str, Any] = {"name": one.name, "type": one.type, "link": None}
    if one.is_widget:
        slot["widget"] = {"name": one.name}
    if not one.required:
        slot["shape"] = _OPTIONAL_SHAPE
    return slot


def _paragraphs(text: str) -> list[str]:
    """Join the lines of each Markdown paragraph; empty lines between paragraphs stay."""
    joined = re.sub(r"\n(?!\n|- )(?<!\n\n) *", " ", text)
    return joined.split("\n")


def _height(schema: Schema) -> int:
    """Return a height in pixels that is sufficient for a node on both the old and the new page."""
    widgets = schema.widgets
    shown = sum(not one.options.get("advanced") for one in widgets)
    lines = len(widgets) + sum(one.control is not None for one in widgets)
    fields = sum(bool(one.options.get("multiline")) for one in widgets)
    body = max(shown * _WIDGET_NEW, lines * _WIDGET_OLD) + fields * _TEXT_FIELD
    slots = max(len(schema.sockets), len(schema.outputs))
    return slots * _SLOT + body + _FOOT + (_ADVANCED if shown < len(widgets) else 0)

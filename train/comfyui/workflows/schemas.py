"""What ComfyUI says of its nodes (`/object_info`), as far as a saved workflow depends on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from magicdistill_core.errors import ConfigError

_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_NUMBERS = {"INT", "FLOAT"}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}


@dataclass(frozen=True)
class Input:
    """One input of a node.

    Attributes:
        type: a socket's type, several with commas between, or that of a widget.
        options: as ComfyUI states them: default, min, max, ...
        choices: of a combo; None for other types.
    """

    name: str
    type: str
    required: bool
    options: Mapping[str, Any]
    choices: tuple[Any, ...] | None

    @property
    def is_widget(self) -> bool:
        """Whether a value can be set on the node itself."""
        return self.type in _WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def control(self) -> str | None:
        """The first value of the control that the page puts behind a seed; None without such a control."""
        control = self.options.get("control_after_generate")
        if not control:
            return None
        return control if isinstance(control, str) else "randomize"

    @property
    def uploads(self) -> bool:
        """Whether the page puts a button for uploads behind this widget."""
        return bool(self.options.get("image_upload"))

    @property
    def default(self) -> Any:
        """The value of a new node."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")

    def fault_of(self, value: Any) -> str | None:
        """What is wrong with a widget's value, in words; None if nothing is."""
        if self.choices is not None:
            return None if value in self.choices else f"{value!r} is not one of {list(self.choices)[:12]}"
        if not isinstance(value, _PYTHON_TYPES[self.type]):
            return f"{value!r} is no {self.type}"
        if self.type in _NUMBERS:
            low, high = self.options.get("min", value), self.options.get("max", value)
            if not low <= value <= high:
                return f"{value} is not within {low} and {high}"
        return None


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    name: str
    type: str


@dataclass(frozen=True)
class Schema:
    """A node: its inputs, required ones first, and its outputs."""

    type: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def sockets(self) -> tuple[Input, ...]:
        """The inputs that take links only."""
        return tuple(one for one in self.inputs if not one.is_widget)

    @property
    def widgets(self) -> tuple[Input, ...]:
        """The inputs with a value on the node, in the order in which workflows list the values."""
        return tuple(one for one in self.inputs if one.is_widget)

    def values_of(self, saved: Sequence[Any]) -> dict[str, Any]:
        """A saved node's values (`widgets_values`) by the names of its widgets.

        Raises:
            ConfigError: if there are more or fewer values than widgets.
        """
        rest, values = list(saved), {}
        for one in self.widgets:
            if not rest:
                raise ConfigError(f"{self.type} has no value for {one.name}. Write the workflow anew.")
            values[one.name] = rest.pop(0)
            if one.control or one.uploads:
                del rest[:1]
        if rest:
            raise ConfigError(f"{self.type} has values without a widget: {rest}. Write the workflow anew.")
        return values


def parse_schemas(object_info: Mapping[str, Any]) -> dict[str, Schema]:
    """Every node's schema by the node's type, from the JSON of `/object_info`."""
    return {name: _parse(name, info) for name, info in object_info.items()}


def find_schema(schemas: Mapping[str, Schema], node_type: str) -> Schema:
    """The schema of a node.

    Raises:
        ConfigError: if this ComfyUI has no such node.
    """
    if node_type not in schemas:
        raise ConfigError(
            f"This ComfyUI has no node {node_type}. Expected ComfyUI 0.30.0 or newer with the pack in it: update it, "
            f"or correct the name."
        )
    return schemas[node_type]


def types_fit(given: str, taken: str) -> bool:
    """Whether an output of one type may be linked to an input of another, as the page decides it."""
    return "*" in (given, taken) or bool(set(given.split(",")) & set(taken.split(",")))


def _parse(name: str, info: Mapping[str, Any]) -> Schema:
    groups = info["input"]
    inputs = [
        _parse_input(key, spec, group == "required")
        for group in ("required", "optional")
        for key, spec in groups.get(group, {}).items()
    ]
    outputs = tuple(
        Output(label, "COMBO" if isinstance(kind, list) else kind)
        for label, kind in zip(info["output_name"], info["output"], strict=True)
    )
    return Schema(name, info.get("display_name") or name, tuple(inputs), outputs)


def _parse_input(name: str, spec: list[Any], required: bool) -> Input:
    options = spec[1] if len(spec) > 1 else {}
    if isinstance(spec[0], list):
        return Input(name, "COMBO", required, options, tuple(spec[0]))
    choices = tuple(options.get("options", ())) if spec[0] == "COMBO" else None
    return Input(name, spec[0], required, options, choices)

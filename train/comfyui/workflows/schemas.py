"""Node schemas of a running ComfyUI (`/object_info`), reduced to the fields that saved workflows depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from magicdistill_core.errors import ConfigError

# A combo whose choices may bring more inputs.
_DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", _DYNAMIC_COMBO}
_NUMBERS = {"INT", "FLOAT"}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}


@dataclass(frozen=True)
class Input:
    """One input of a node.

    Attributes:
        name: the input's name.
        type: type of the socket (several types are separated by commas) or of the widget.
        required: whether the node needs this input.
        options: ComfyUI's options of the input: default, min, max, ...
        choices: possible values of a combo; None for other types. Of a dynamic combo, only those that bring no more
            inputs.
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
        """Initial value of the *control after generate* widget that follows a seed; None without this widget."""
        control = self.options.get("control_after_generate")
        if not control:
            return None
        return control if isinstance(control, str) else "randomize"

    @property
    def uploads(self) -> bool:
        """Whether an upload button follows this widget."""
        return bool(self.options.get("image_upload"))

    @property
    def default(self) -> Any:
        """The value of this input on a new node."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")

    def fault_of(self, value: Any) -> str | None:
        """Return an error message for an invalid widget value; None for a valid one.

        Args:
            value: the value of the widget in a workflow.
        """
        if self.choices is not None:
            return None if value in self.choices else f"{value!r} is not one of {list(self.choices)[:12]}"
        if not isinstance(value, _PYTHON_TYPES[self.type]):
            return f"{value!r} is not of type {self.type}"
        if self.type in _NUMBERS:
            low, high = self.options.get("min", value), self.options.get("max", value)
            if not low <= value <= high:
                return f"{value} is not between {low} and {high}"
        return None


@dataclass(frozen=True)
class Output:
    """One output of a node, with its name and its type, such as `LATENT`."""

    name: str
    type: str


@dataclass(frozen=True)
class Schema:
    """A type of node: its inputs, required ones first, and its outputs.

    Attributes:
        type: the type's name in saved workflows.
        title: the type's display name.
        inputs: the inputs, required ones first.
        outputs: the outputs in their order.
    """

    type: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def sockets(self) -> tuple[Input, ...]:
        """The inputs that accept only links."""
        return tuple(one for one in self.inputs if not one.is_widget)

    @property
    def widgets(self) -> tuple[Input, ...]:
        """The inputs with a value on the node, in the order of a workflow's `widgets_values`."""
        return tuple(one for one in self.inputs if one.is_widget)

    def values_of(self, saved: Sequence[Any]) -> dict[str, Any]:
        """Return a saved node's widget values by the widgets' names.

        Args:
            saved: the node's `widgets_values`.

        Raises:
            ConfigError: if there are more or fewer values than widgets.
        """
        rest, values = list(saved), {}
        for one in self.widgets:
            if not rest:
                raise ConfigError(f"{self.type} has no value for {one.name}. Write the workflow again.")
            values[one.name] = rest.pop(0)
            if one.control or one.uploads:
                del rest[:1]
        if rest:
            raise ConfigError(f"{self.type} has values without a widget: {rest}. Write the workflow again.")
        return values


def parse_schemas(object_info: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the schemas by node type.

    Args:
        object_info: the JSON of ComfyUI's `/object_info`.
    """
    return {name: _parse(name, info) for name, info in object_info.items()}


def find_schema(schemas: Mapping[str, Schema], node_type: str) -> Schema:
    """Return the schema of a node type.

    Args:
        schemas: schemas by node type, from `parse_schemas`.
        node_type: the type's name in saved workflows.

    Raises:
        ConfigError: if this ComfyUI does not have the node.
    """
    if node_type not in schemas:
        raise ConfigError(
            f"This ComfyUI has no node {node_type}. Expected ComfyUI 0.30.0 or newer with the pack installed. Update "
            f"ComfyUI, or correct the name."
        )
    return schemas[node_type]


def types_fit(output: str, accepted: str) -> bool:
    """Return whether an output may be linked to an input, by the rule of ComfyUI's page.

    Args:
        output: type of the output; `*` fits all, and several types are separated by commas.
        accepted: type of the input, in the same form.
    """
    return "*" in (output, accepted) or bool(set(output.split(",")) & set(accepted.split(",")))


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
    if spec[0] == _DYNAMIC_COMBO:
        choices = tuple(one["key"] for one in options["options"] if not any(one["inputs"].values()))
    return Input(name, spec[0], required, options, choices)

"""The reference page of all settings, generated from the configuration's types and descriptions.

`python -m train.config.page` writes `docs/settings.md`.
"""

import inspect
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from .methods import AnyMethod, MatchingConfig, MethodConfig
from .sections import Section
from .training import TrainConfig

# Sections, and the dotted names under which the configuration contains them.
Places = dict[type[Section], list[str]]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

_INTRODUCTION = """# Settings

Every setting of `magicdistill train`, section by section. [Training](training.md) explains the methods and how a run
proceeds; [Train your own](train-your-own.md) goes from clips to a finished file.

<!-- Generated from train/config by `python -m train.config.page`. Change the descriptions there. -->

## How to give settings

**On the command line**, `KEY=VALUE` changes one setting of a configuration file. A dot separates section and setting.
Put a setting with spaces or braces in quotes. If a setting is given twice, the last value counts and a warning says so.

```
uv run magicdistill train train/presets/pocket_w2s.yaml run=runs/mine updates=10 generator_optimizer.lr=2e-5
uv run magicdistill train train/presets/pocket_w2s.yaml run=runs/dmd 'method={name: dmd}'
```

**A configuration file** is YAML, started with `uv run magicdistill train my_run.yaml`. `extends` names another file,
relative to the folder of your file. Your file then needs only the settings that differ from that one. The presets in
`train/presets` extend each other like this. A `method` with another `name` replaces the inherited method completely.

```yaml
# my_run.yaml, in the folder of the repository
extends: train/presets/hunyuan_i2v_w2s_4step.yaml
run: runs/mine
updates: 400
model:
  null_prompt: models/my_prompt.safetensors
generator_optimizer: {lr: 1.0e-5}
```

**Values** are taken as they are written: `run=2026-11-26` and `run=123` name folders, `updates=010` is 10, and
`minutes=1:30` is not a number. `true`, `yes` and `on` are the same, and so are `false`, `no` and `off`. `null` means
"not set". Every number must be finite. In a file, ` #` begins a comment and a name that contains it needs quotes; on
the command line it does not begin a comment.

**Paths** may begin with `~`, the home folder. A variable such as `$SCRATCH` in a file is an error, because only a shell
replaces variables; on the command line the shell does. Paths are relative to the folder in which you start the command;
only `extends` is relative to its file.

An unknown name or a wrong value ends the command with an error that names the setting, before anything is loaded. Each
run saves its complete configuration, with all defaults filled in, as `config.yaml` in its folder.

A resumed run may change every setting except those that decide what was trained so far: teacher, dataset,
`model.mode`, `method.name`, and the number of samples in an update.

In the tables, *required* settings have no default, and `null` means "not set". The defaults are those of the trainer; a
preset may set other values. MD is the [MagicDistillation](https://arxiv.org/abs/2503.13319) paper, M141 is
[Magic 1-For-1](https://arxiv.org/abs/2502.07701).

Some words have a fixed meaning here:

- A *branch* is a LoRA on the frozen teacher, used at a weight.
- A *role* is what a network does in a training: generator, teacher, real score, fake score or discriminator.
- An *update* is one optimizer step of one network. A *round* is one generator update with the updates of the fake
  branch and the discriminator before it.
- The *recipe* is the sampling settings that an exported file stores.
"""

# Limits that are easier to read as powers.
_POWERS = {2**64 - 1: "2^64 - 1", -(2**63): "-2^63"}

_METHODS: list[type[MethodConfig]] = list(get_args(get_args(AnyMethod)[0]))

_METHOD_INTRODUCTION = """\
`method.name` selects the method. The methods with a fake branch share the settings of the first table; the section of
each method shows only the settings that it adds or changes.
"""


def settings_page() -> str:
    """Return the page as Markdown: one heading per section, with a table of its settings."""
    places = _places()
    parts = [_INTRODUCTION, "## Top level\n", _table(TrainConfig, TrainConfig.model_fields, places)]
    for section, paths in places.items():
        if section is MethodConfig:
            parts += list(_methods(places))
        else:
            parts += [f"## {_title(paths)}\n", _docstring(section), _table(section, section.model_fields, places)]
    return "\n".join(parts)


def _places() -> Places:
    """Return every section, in the page's order, with the dotted names under which the configuration contains it."""
    places: Places = {}

    def visit(section: type[Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            inner, path = _section_in(field.annotation), f"{prefix}{name}"
            if inner is not None and path not in places.setdefault(inner, []):
                places[inner].append(path)
                variants: list[type[Section]] = [MatchingConfig, *_METHODS] if inner is MethodConfig else [inner]
                for variant in variants:
                    visit(variant, f"{path}.")

    def place_on_page(paths: list[str]) -> int:
        return list(TrainConfig.model_fields).index(paths[0].partition(".")[0])

    visit(TrainConfig, "")
    shortest_first = {section: sorted(paths, key=lambda path: path.count(".")) for section, paths in places.items()}
    return dict(sorted(shortest_first.items(), key=lambda item: place_on_page(item[1])))


def _methods(places: Places) -> Iterator[str]:
    """Yield the sections of the methods."""
    yield f"## `method`\n\n{_METHOD_INTRODUCTION}"
    lines = ["| `name` | method |", "| --- | --- |"]
    for method in _METHODS:
        default = " The default." if _name(method) == TrainConfig.model_fields["method"].default.name else ""
        lines.append(f"| [`{_name(method)}`](#method-{_name(method)}) | {_escaped(_summary(method))}{default} |")
    yield "\n".join(lines) + "\n"
    shared = ", ".join(f"`{_name(method)}`" for method in _METHODS if issubclass(method, MatchingConfig))
    yield f"### `method`: shared settings\n\nFor {shared}.\n\n{_docstring(MatchingConfig)}"
    yield _table(MatchingConfig, [name for name in MatchingConfig.model_fields if name != "name"], places)
    for method in _METHODS:
        yield f"### `method: {_name(method)}`\n\n{_docstring(method)}"
        own = [name for name in method.model_fields if name in inspect.get_annotations(method) and name != "name"]
        if issubclass(method, MatchingConfig):
            yield f"The [shared settings](#method-shared-settings){', and:' if own else '.'}\n"
        if own:
            yield _table(method, own, places)


def _table(section: type[Section], names: Iterable[str], places: Places) -> str:
    """Return a table of some settings of a section."""
    lines = ["| setting | value | default | what it does |", "| --- | --- | --- | --- |"]
    for name in names:
        field = section.model_fields[name]
        description = _escaped(field.description or "")
        lines.append(f"| `{name}` | {_values(field, places)} | {_default(field)} | {description} |")
    return "\n".join(lines) + "\n"


def _values(field: FieldInfo, places: Places) -> str:
    """Return the allowed values of a setting in words; for a section a link to it."""
    section = _section_in(field.annotation)
    if section is not None:
        return f"[section](#{_anchor(_title(places[section]))})"
    return _escaped(_kind(field.annotation, field.metadata))


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a type names; for a method `MethodConfig`; None for other types."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return MethodConfig if issubclass(annotation, MethodConfig) else annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part))), None)


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """Return a type with its limits in words, such as `integer >= 1`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], [limit for part in parts[1:] for limit in getattr(part, "metadata", ())])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in parts)
    if origin in (Union, types.UnionType):
        given = [part for part in parts if part is not types.NoneType]
        return " or ".join([*(_kind(part, metadata) for part in given), "`null`"])
    if origin is tuple and Ellipsis in parts:
        count = next((limit.min_length for limit in metadata if isinstance(limit, annotated_types.MinLen)), None)
        return f"list{'' if count is None else f' of {count}'}, each {_kind(parts[0], [])}"
    if origin is tuple:
        return f"[{', '.join(_kind(part, []) for part in parts)}]"
    words = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path", type(None): "`null`"}
    return " ".join([words[annotation], *filter(None, [_range(metadata)])])


def _range(metadata: list[Any]) -> str:
    signs = {annotated_types.Gt: (">", "gt"), annotated_types.Ge: (">=", "ge")}
    signs |= {annotated_types.Lt: ("<", "lt"), annotated_types.Le: ("<=", "le")}
    limits = [(signs[type(limit)], limit) for limit in metadata if type(limit) in signs]
    values = [(sign, getattr(limit, name)) for (sign, name), limit in limits]
    return ", ".join(f"{sign} {_POWERS.get(value) or _yaml(value)}" for sign, value in values)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if isinstance(field.default, MethodConfig):
        return f"`{field.default.name}`"
    return "" if isinstance(field.default, Section) else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """Return a value as a user writes it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _name(method: type[MethodConfig]) -> str:
    return str(method.model_fields["name"].default)


def _docstring(section: type[Section]) -> str:
    return f"{inspect.getdoc(section)}\n"


def _summary(section: type[Section]) -> str:
    return str(inspect.getdoc(section)).partition("\n")[0]


def _title(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


def _anchor(title: str) -> str:
    """Return the anchor that GitHub derives from a heading."""
    kept = "".join(letter for letter in title if letter.isalnum() or letter in "_- ")
    return kept.lower().replace(" ", "-")


def _escaped(text: str) -> str:
    """Return a text for a table's cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")

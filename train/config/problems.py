"""The errors of a configuration in words: the setting, what was found, what was expected, and the nearest name."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from .sections import Section, sections_in

# A found value is shown up to this length.
_SHOWN = 60


def fields_at(section: type[Section], path: Sequence[str]) -> Iterator[tuple[type[Section], Any]]:
    """Yield each section that can hold a setting, and the type of the setting there.

    A setting of a method can belong to several sections, because each method has its own.

    Args:
        section: the section at the top.
        path: the names of the sections on the way, and of the setting.
    """
    *parents, leaf = path
    for holder in _sections_at(section, parents):
        if leaf in holder.model_fields:
            yield holder, holder.model_fields[leaf].annotation


def problems(error: ValidationError, section: type[Section]) -> str:
    """Describe all problems of a configuration, one after another.

    Args:
        error: the error of pydantic.
        section: the section at the top.
    """
    return "; ".join(_problem(entry, section) for entry in error.errors())


def _problem(entry: Any, section: type[Section]) -> str:
    path = _path(section, entry["loc"])
    name = ".".join(path)
    if entry["type"] == "extra_forbidden":
        return f"{name}: there is no such field{_nearest(section, path, entry['loc'])}"
    text = entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    text = text.replace("Input should be", "expected", 1).replace("Input is not", "expected", 1)
    if entry["type"] in ("model_type", "model_attributes_type"):
        fields = [field for inner in _sections_at(section, path) for field in inner.model_fields]
        text = f"expected a section with fields, such as {name}.{fields[0]}" if fields else text
    elif entry["type"] == "path_type":
        text = "expected a path"
    elif entry["type"].startswith("union_tag"):
        name, text = f"{name}.name", _unknown_method(section, path)
    if entry["type"] not in ("value_error", "missing"):
        found = entry["input"]
        if entry["type"].startswith("union_tag") and isinstance(found, dict):
            found = found.get("name")
        near = "" if entry["type"].startswith("model") else _nearest_word(section, path, found)
        text = f"{text}; found {_shown(found)}{near}"
    return f"{name}: {text}" if name else text


def _unknown_method(section: type[Section], path: Sequence[str]) -> str:
    names = [str(inner.model_fields["name"].default) for inner in _sections_at(section, path)]
    return f"expected one of {', '.join(names)}"


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _path(section: type[Section], loc: Sequence[str | int]) -> list[str]:
    """Return a setting's path as users write it: pydantic inserts the name of the method after `method`."""
    path: list[str] = []
    for part in map(str, loc):
        tags = [inner for inner in _sections_at(section, path) if _tag(inner) == part] if path else []
        if tags and len(_sections_at(section, path)) > 1:
            continue
        path.append(part)
    return path


def _tag(section: type[Section]) -> str | None:
    """Return the name of a method; None for other sections."""
    field = section.model_fields.get("name")
    return None if field is None else str(field.default)


def _sections_at(section: type[Section], path: Sequence[str]) -> list[type[Section]]:
    """Return the sections that a path can name; several where the method decides, and none if it names no section."""
    found = [section]
    for part in path:
        fields = [holder.model_fields[part] for holder in found if part in holder.model_fields]
        found = list(dict.fromkeys(inner for field in fields for inner in sections_in(field.annotation)))
    return found


def _nearest(section: type[Section], path: Sequence[str], loc: Sequence[str | int]) -> str:
    """Return a question for the field that an unknown name probably means; empty if none is near."""
    *parents, leaf = path
    holders = _sections_at(section, parents)
    chosen = [holder for holder in holders if _tag(holder) in loc] or holders
    near = get_close_matches(leaf, [name for holder in chosen for name in holder.model_fields], n=1)
    if near:
        return f" (did you mean {'.'.join([*parents, near[0]])}?)"
    elsewhere = [name for name in _names(section) if name.rpartition(".")[2] == leaf]
    return f" (did you mean {' or '.join(elsewhere[:3])}?)" if elsewhere else ""


def _names(section: type[Section], prefix: str = "") -> list[str]:
    """Return the dotted names of all fields."""
    names: dict[str, None] = {}
    for name, field in section.model_fields.items():
        names[f"{prefix}{name}"] = None
        for inner in sections_in(field.annotation):
            names |= dict.fromkeys(_names(inner, f"{prefix}{name}."))
    return list(names)


def _nearest_word(section: type[Section], path: Sequence[str], found: Any) -> str:
    """Return a question for the word of a list of words that a value probably means."""
    if not isinstance(found, str) or not path:
        return ""
    words = [word for _, kind in fields_at(section, path) for word in _words(kind)]
    words += [tag for inner in _sections_at(section, path) if (tag := _tag(inner)) is not None]
    near = get_close_matches(found, words, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _words(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from (word for word in get_args(kind) if isinstance(word, str))
    else:
        for part in get_args(kind):
            yield from _words(part)

"""Reading configurations: YAML files, `key=value` settings, and errors that name the field."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from magicdistill_core.errors import ConfigError

from ..run_folder import CONFIG_FILE, RUN_FILE
from .methods import W2SConfig
from .sections import Section
from .training import TrainConfig

S = TypeVar("S", bound=Section)

logger = logging.getLogger(__name__)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"Cannot read the setting {text!r}. Expected key=value, such as zero.stage=3.")
    *path, leaf = key.split(".")
    node: Any = tree
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"In {text!r}, {part} is a value and has no fields. Check the key's spelling.")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem", None) or "it is no YAML"
        raise ConfigError(
            f"Cannot read the value of the setting {text!r} ({mark}). A shell divides what has spaces or braces: put "
            f"the whole setting in quotes, such as 'method={{name: dmd}}'."
        ) from error


def parse_section(section: type[S], tree: dict[str, Any], source: str) -> S:
    """Build a part of a configuration, or a whole one, from plain data.

    Raises:
        ConfigError: naming every field that is unknown, missing or has a wrong value.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            name = ".".join(map(str, entry["loc"]))
            kind = "there is no such field" if entry["type"] == "extra_forbidden" else entry["msg"]
            kind = kind.removeprefix("Value error, ")
            problems.append(f"{name}: {kind}" if name else kind)
        raise ConfigError(
            f"{source} is no valid configuration. {'; '.join(problems)}. Correct these fields."
        ) from error


def parse_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """Build a training configuration from plain data; errors as in `parse_section`."""
    return parse_section(TrainConfig, tree, source)


def parse_settings(section: type[S], settings: Sequence[str]) -> S:
    """Build a part of a configuration from its defaults and `key=value` texts.

    Raises:
        ConfigError: if a text is no setting, or as `parse_section`.
    """
    # So that a text can change one field of a default section.
    defaults = {name: field.default for name, field in section.model_fields.items()}
    tree = {name: value.model_dump() for name, value in defaults.items() if isinstance(value, Section)}
    for text in settings:
        _override(tree, text)
    return parse_section(section, tree, " ".join(settings) or "an empty list of settings")


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A tree with changes, section by section; a method of another name replaces the one that was there."""
    merged = dict(tree)
    for key, value in changes.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and not _is_another_method(key, before, value):
            value = _merged(before, value)
        merged[key] = value
    return merged


def _is_another_method(key: str, before: dict[str, Any], value: dict[str, Any]) -> bool:
    usual = W2SConfig.model_fields["name"].default
    return key == "method" and "name" in value and value["name"] != before.get("name", usual)


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings, upon those of the file that it `extends`."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is no YAML file ({error}). Correct it at that place.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name} holds no settings. Expected a YAML mapping; see the presets in train/presets.")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    parent = path.parent / str(base)
    if parent in (*children, path):
        raise ConfigError(f"{path.name} extends {base}, which extends it again. Let one of them stand by itself.")
    return _merged(_read(parent, (*children, path)), tree)


def _moved_to(path: Path, named: Any) -> Path | None:
    """The folder of a run, if `path` is the configuration in it, and that names another folder: one moved or copied."""
    folder = path.parent
    if path.name != CONFIG_FILE or not (folder / RUN_FILE).is_file() or Path(str(named)).resolve() == folder.resolve():
        return None
    return folder


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration and apply `key.key=value` overrides.

    A file may begin with `extends: OTHER.yaml` (beside it): it then holds only what differs from that one. The one
    in the folder of a run that was moved or copied is for that folder, unless an override says otherwise.

    Raises:
        ConfigError: if a file is absent, no YAML mapping, or not valid.
    """
    tree = _read(path)
    if (folder := _moved_to(path, tree.get("run"))) is not None:
        if not any(text.startswith("run=") for text in overrides) and os.environ.get("RANK", "0") == "0":
            named = tree.get("run")
            logger.warning("%s names the run %s; taken is the one that it lies in (else: run=%s)", path, named, named)
        tree["run"] = str(folder)
    for text in overrides:
        _override(tree, text)
    return parse_config(tree, path.name)

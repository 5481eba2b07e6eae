"""Reading configurations from YAML files and `key=value` settings, with errors that name the field."""

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
            raise ConfigError(
                f"In {text!r}, {part} is a value, not a section, so it has no fields. Check the key's spelling."
            )
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigError(
            f"Cannot read the value of the setting {text!r} ({mark}). A shell splits settings at spaces and braces. "
            f"Put the complete setting in quotes, such as 'method={{name: dmd}}'."
        ) from error


def parse_section(section: type[S], tree: dict[str, Any], source: str) -> S:
    """Build a section, or a complete configuration, from plain data.

    Args:
        section: the class of the section.
        tree: the fields by name, as YAML or JSON data; a section inside is a dictionary.
        source: where the data come from, for errors.

    Raises:
        ConfigError: if a field is unknown, missing or has a wrong value. The error names all such fields.
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
            f"{source} is not a valid configuration. {'; '.join(problems)}. Correct these fields."
        ) from error


def parse_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """Build a training configuration from plain data; arguments and errors as in `parse_section`."""
    return parse_section(TrainConfig, tree, source)


def parse_settings(section: type[S], settings: Sequence[str]) -> S:
    """Build a section from its defaults and `key=value` texts.

    Args:
        section: the class of the section, whose fields all have defaults or are set by the texts.
        settings: the texts; a key may have dots, such as `optimizer.lr=1e-4`.

    Raises:
        ConfigError: if a text is not a setting; else as `parse_section`.
    """
    # Nested sections start from their defaults: a text can then change a single field of them.
    defaults = {name: field.default for name, field in section.model_fields.items()}
    tree = {name: value.model_dump() for name, value in defaults.items() if isinstance(value, Section)}
    for text in settings:
        _override(tree, text)
    return parse_section(section, tree, " ".join(settings) or "an empty list of settings")


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes into a tree section by section. A method with another name replaces the previous one."""
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
    """Return a file's settings, merged into the settings of the file that it `extends`."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not a YAML file ({error}). Correct it at that place.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name} holds no settings. Expected a YAML mapping; see the presets in train/presets.")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    parent = path.parent / str(base)
    if parent in (*children, path):
        raise ConfigError(
            f"{path.name} extends {base}, which itself extends {path.name}, directly or through other files. Remove "
            f"one of these `extends`."
        )
    return _merged(_read(parent, (*children, path)), tree)


def _moved_to(path: Path, named: Any) -> Path | None:
    """Return the folder of a moved or copied run: `path` is the run's own configuration, but names another folder.

    Returns:
        The folder that contains `path`; None if the run was not moved, or `path` is not a run's own configuration.
    """
    folder = path.parent
    if path.name != CONFIG_FILE or not (folder / RUN_FILE).is_file() or Path(str(named)).resolve() == folder.resolve():
        return None
    return folder


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration and apply `key.key=value` overrides.

    A file may contain `extends: OTHER.yaml`, a path relative to its own folder. It then needs only the settings that
    differ from that file. The `config.yaml` of a run that was moved or copied applies to the folder that contains it,
    unless an override sets `run`.

    Args:
        path: the YAML file.
        overrides: `key.key=value` texts, such as `zero.stage=3`; they replace settings of the file.

    Raises:
        ConfigError: if a file is absent, is not a YAML mapping, or is not valid.
    """
    tree = _read(path)
    if (folder := _moved_to(path, tree.get("run"))) is not None:
        if not any(text.startswith("run=") for text in overrides) and os.environ.get("RANK", "0") == "0":
            named = tree.get("run")
            logger.warning(
                "%s names the run %s; its own folder is used instead (run=%s overrides this)", path, named, named
            )
        tree["run"] = str(folder)
    for text in overrides:
        _override(tree, text)
    return parse_config(tree, path.name)

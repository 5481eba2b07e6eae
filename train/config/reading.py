"""Reading configurations from YAML files and `key=value` settings, with errors that name the field."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from magicdistill_core.errors import ConfigError

from ..run_folder import CONFIG_FILE, RUN_FILE
from .earlier import of_this_version
from .methods import W2SConfig
from .paths import at_home, written_path
from .problems import fields_at, problems
from .sections import Section, takes_text
from .training import TrainConfig
from .yaml_text import parse_yaml

S = TypeVar("S", bound=Section)

logger = logging.getLogger(__name__)

# The words of YAML for "not set".
_NULL = ("null", "Null", "NULL", "~")


def _override(tree: dict[str, Any], text: str, section: type[Section]) -> None:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"Cannot read the setting {text!r}. Expected key=value, such as zero.stage=3.")
    if not value:
        raise ConfigError(
            f"The setting {text!r} has no value. Write one after the equals sign; null is the value that means 'not "
            "set'."
        )
    *path, leaf = key.split(".")
    node: Any = tree
    for part in path:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ConfigError(
                f"In {text!r}, {part} is a value, not a section, so it has no fields. Check the key's spelling."
            )
    node[leaf] = _value(text, value, [kind for _, kind in fields_at(section, [*path, leaf])])


def _value(setting: str, value: str, kinds: list[Any]) -> Any:
    """Return the value of a setting on the command line.

    Paths and texts are taken as they are, except a text in quotes. Elsewhere braces, brackets and quotes are YAML.
    """
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    free = any(map(takes_text, kinds))
    if value in _NULL and (not free or any(type(None) in get_args(kind) for kind in kinds)):
        return None
    if not quoted and (free or value[0] not in "[{'\""):
        return value
    try:
        return parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(
            f"Cannot read the value of the setting {setting!r} ({error}). A shell splits settings at spaces and "
            f"braces. Put the complete setting in quotes, such as 'method={{name: dmd}}'."
        ) from error


def _override_all(tree: dict[str, Any], settings: Sequence[str], section: type[Section]) -> None:
    """Apply settings in their order; of a setting that is given twice, the last value counts."""
    given: dict[str, str] = {}
    for text in settings:
        key = text.partition("=")[0].strip()
        if key in given and given[key] != text and _is_first_process():
            logger.warning("The setting %s is given twice: %s counts, not %s", key, text, given[key])
        given[key] = text
        _override(tree, text, section)


def _is_first_process() -> bool:
    """Return whether this process is the one that logs; the processes have not joined their group yet."""
    return os.environ.get("RANK", "0") == "0"


def parse_section(section: type[S], tree: dict[str, Any], source: str) -> S:
    """Build a section, or a complete configuration, from plain data.

    Args:
        section: the class of the section.
        tree: the fields by name, as text or as JSON data; a section inside is a dictionary.
        source: where the data come from, for errors.

    Raises:
        ConfigError: if a field is unknown, missing or has a wrong value. The error names all such fields.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            f"{source} is not a valid configuration. {problems(error, section)}. Correct these fields."
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
    _override_all(tree, settings, section)
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
        tree = parse_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error.strerror}). Check the path.") from error
    except ConfigError as error:
        raise ConfigError(f"{path.name} is not a valid YAML file: {error}. Correct it at that place.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name} holds no settings. Expected a YAML mapping; see the presets in train/presets.")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path.name} extends {base!r}. Expected the path of one other file.")
    try:
        parent = path.parent / written_path(base)
    except ConfigError as error:
        raise ConfigError(f"{path.name} extends {base!r}, but {error}.") from error
    if parent.resolve() in {child.resolve() for child in (*children, path)}:
        raise ConfigError(
            f"{path.name} extends {base}, which itself extends {path.name}, directly or through other files. Remove "
            f"one of these `extends`."
        )
    return _merged(_read(parent, (*children, path)), tree)


def _is_own_configuration(path: Path) -> bool:
    """Return whether a file is the configuration that a run wrote into its own folder."""
    return path.name == CONFIG_FILE and (path.parent / RUN_FILE).is_file()


def _moved_to(path: Path, named: Any) -> Path | None:
    """Return the folder of a moved or copied run: `path` is the run's own configuration, but names another folder.

    Returns:
        The folder that contains `path`; None if the run was not moved, or `path` is not a run's own configuration.
    """
    folder = path.parent
    if not _is_own_configuration(path):
        return None
    try:
        same = isinstance(named, str) and Path(at_home(named)).resolve() == folder.resolve()
    except ConfigError:  # reported later, with all other wrong settings
        return None
    return None if same else folder


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration and apply `key.key=value` overrides.

    A file may contain `extends: OTHER.yaml`, a path relative to its own folder. It then needs only the settings that
    differ from that file. The `config.yaml` of a run that was moved or copied applies to the folder that contains it,
    unless an override sets `run`. The `config.yaml` of a run of an earlier version is read as that version meant it.

    Args:
        path: the YAML file.
        overrides: `key.key=value` texts, such as `zero.stage=3`; they replace settings of the file.

    Raises:
        ConfigError: if a file is absent, is not a YAML mapping, or is not valid.
    """
    tree = _read(path)
    if _is_own_configuration(path):
        tree, notes = of_this_version(tree)
        for note in notes if _is_first_process() else ():
            logger.info("%s was written by an earlier version: %s", path, note)
    if (folder := _moved_to(path, tree.get("run"))) is not None:
        if not any(text.partition("=")[0].strip() == "run" for text in overrides) and _is_first_process():
            named = tree.get("run")
            logger.warning(
                "%s names the run %s; its own folder is used instead (run=%s overrides this)", path, named, named
            )
        tree["run"] = str(folder)
    _override_all(tree, overrides, TrainConfig)
    return parse_config(tree, path.name)

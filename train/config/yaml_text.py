"""YAML whose values stay as they are written: every scalar is text, so that no rule of YAML changes its meaning.

YAML 1.1 reads `010` as 8, `1:30` as 90, `2026-11-26` as a date, and `off` as false. The fields of the configuration
have types. Each field therefore reads its own text. Only an empty value, `null` and `~` without quotes are None.
"""

from typing import Any

import yaml

from magicdistill_core.errors import ConfigError

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """Return PyYAML's rules for null and for the merge key `<<`, by first letter, without its rules for other types."""
    rules = yaml.SafeLoader.yaml_implicit_resolvers
    return {first: [rule for rule in known if rule[0] in (_NULL, _MERGE)] for first, known in rules.items()}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without types for plain scalars, and without repeated keys."""

    yaml_implicit_resolvers = _resolvers()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; refuse a key that stands there twice, of which YAML would keep only the last."""
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            # Several `<<` merge several mappings.
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line = key.start_mark.line + 1
                if key.value in seen:
                    problem = f"{key.value} is set twice, first in line {seen[key.value]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen[key.value] = line
        return node


def parse_yaml(data: str | bytes) -> Any:
    """Parse YAML into dictionaries, lists, texts and None.

    Args:
        data: the text, or the bytes of a file in UTF-8 or UTF-16.

    Raises:
        ConfigError: if it is not YAML; the message is the reason with its line and column, without a capital letter.
    """
    try:
        return yaml.load(data, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(_reason(error)) from error
    except RecursionError as error:
        raise ConfigError("its brackets are nested too deeply") from error


def _reason(error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:  # bytes that are no text
        return f"it is not a text in UTF-8: {getattr(error, 'reason', None) or 'unreadable'}"
    if "'\\t'" in problem:
        problem += ": YAML takes spaces, not tabs"
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(problem)

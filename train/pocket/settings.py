"""``key=value`` settings from the command line into a config model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from magicdistill_core.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)


def parse_settings(model: type[Config], settings: Sequence[str]) -> Config:
    """Build ``model`` from ``key=value`` texts.

    Raises:
        ConfigError: naming the field that is unknown, misspelt or out of range.
    """
    values: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"`{setting}` is no setting: write key=value, as in steps=1000.")
        values[key.strip()] = value.strip()
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(model.model_fields)
        raise ConfigError(f"These settings do not fit: {problems}. Known settings: {known}.") from error

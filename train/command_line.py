"""What every command shares: paths may begin with `~`, and numbers are finite."""

from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import typer

from magicdistill_core.errors import ConfigError

from .config.paths import at_home

Function = TypeVar("Function", bound=Callable[..., Any])


class CommandLine(typer.Typer):
    """A group of commands that prepares the values of all options and arguments."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Return a decorator that adds a function as a command.

        Args:
            name: the command's name; None takes the function's.
            options: as for `typer.Typer.command`.
        """
        add = super().command(name, **options)

        def decorate(function: Function) -> Function:
            @wraps(function)
            def call(**values: Any) -> Any:
                return function(**{name: _prepared(name, value) for name, value in values.items()})

            add(call)
            return function

        return decorate


def _prepared(name: str, value: Any) -> Any:
    """Return an option's value with the home folder in place of `~`, which a shell leaves in `--out=~/x`.

    Raises:
        ConfigError: if the home folder is unknown, or a number is not finite.
    """
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, Path):
        try:
            return Path(at_home(str(value)))
        except ConfigError as error:
            raise ConfigError(f"{option} cannot be used: {error}.") from error
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{option} is {value}. Expected a finite number.")
    return value

"""What every command shares: paths may begin with `~`, and numbers are finite."""

from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

import typer

from magicdistill_core.errors import ConfigError

from .config.paths import at_home


class CommandLine(typer.Typer):
    """A group of commands that prepares the values of all options and arguments."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that adds a function as a command.

        Args:
            arguments: the command's name.
            options: as for `typer.Typer.command`.
        """
        add = super().command(*arguments, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
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

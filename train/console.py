"""Everything that the commands print. A name or a path is shown as it is, whole and on one line.

Rich reads `[lora]` and `:smile:` in a text as its own marks, and breaks long lines. A printed path could then not be
copied. All output therefore passes through this module.
"""

import logging
import shlex
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

# The name of the command, which messages print for the user to copy.
COMMAND = "magicdistill"


def command(*arguments: object) -> str:
    """Return a command of this project that a shell reads as it is meant, such as `magicdistill export 'my run'`.

    Args:
        arguments: the subcommand, its arguments and its options; the names of files may have spaces.
    """
    return shlex.join([COMMAND, *map(str, arguments)])


def show(text: str, *, error: bool = False, style: str = "") -> None:
    """Print one paragraph. The terminal may break it, but the printed text has no line break.

    Args:
        text: the text; markup in it has no effect.
        error: whether to print on stderr instead of stdout.
        style: a style of Rich, such as `red`.
    """
    console = Console(stderr=error)
    console.print(_plain(text, console, style), soft_wrap=True)


def show_facts(facts: Mapping[str, str]) -> None:
    """Print one line per fact on stdout.

    Args:
        facts: values by label.
    """
    console, width = Console(), max(map(len, facts), default=0)
    for label, value in facts.items():
        line = _plain(f"{label:<{width}}", console, "bold").append_text(_plain(f"  {value}", console))
        console.print(line, soft_wrap=True)


def progress_bar(console: Console | None = None, *, disable: bool = False) -> Progress:
    """Return a progress bar: the task's description, the bar, the count, the time, and the task's field `note`.

    Args:
        console: where to show it; None is stdout.
        disable: whether to show nothing.
    """
    console = console or Console()
    return Progress(
        _PlainColumn("description", console, "bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _PlainColumn("note", console),
        console=console,
        disable=disable,
    )


class _PlainColumn(ProgressColumn):
    """A text of a task of a progress bar: its description, or one of its fields."""

    def __init__(self, name: str, console: Console, style: str = "") -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._name, self._console, self._style = name, console, style

    def render(self, task: Task) -> Text:
        text = task.description if self._name == "description" else task.fields.get(self._name, "")
        return _plain(text, self._console, self._style)


def _plain(text: str, console: Console, style: str = "") -> Text:
    """Return a text without markup, in which the letters that the terminal does not know are written as numbers."""
    known = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    return Text(known, style=style)


class LogHandler(logging.Handler):
    """Prints log messages on stderr: the level, and the message on one line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message.

        Args:
            record: the message with its level.
        """
        try:
            console = Console(stderr=True)
            level = Text(f"{record.levelname:<8} ", style=f"logging.level.{record.levelname.lower()}")
            console.print(level.append_text(_plain(self.format(record), console)), soft_wrap=True)
        except Exception:
            self.handleError(record)

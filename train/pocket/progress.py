"""The progress of long measurements, as the commands show it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Shows the progress of a piece of work with a title, as a function `(done, total)`.
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def no_progress(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show nothing."""
    return nullcontext(lambda done, total: None)


def adding(advance: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Return a callback that moves a bar on by a number of finished parts.

    Args:
        advance: called with (done, total).
        total: number of all parts.
    """
    done = 0

    def add(parts: int) -> None:
        nonlocal done
        done += parts
        advance(done, total)

    return add

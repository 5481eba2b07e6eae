"""Being told to stop: SIGTERM (a scheduler takes the machine back) and SIGINT (Ctrl-C) end a run after its round."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers pass on what the terminal has already sent to every process.
_SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """A context in which a first signal is remembered; a second one, some seconds later, ends the process at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Self:
        # Only the main thread may; elsewhere (in somebody's notebook) signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, now
            logger.warning("%s: saving after this round, then stopping. Once more to stop at once.", self.name)
        elif now - self._since > _SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

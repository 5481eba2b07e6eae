"""Signals that stop long work at its next good point.

SIGTERM comes from a cluster's scheduler, SIGINT from Ctrl-C, and SIGHUP from a terminal that was closed.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The terminal sends Ctrl-C to every process, and the launcher forwards it again within this time.
_SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """A `with` block that remembers the first signal; a second one, some seconds later, ends the process at once.

    The block looks at `name` where it can stop.

    Attributes:
        name: the name of the first signal, such as `SIGTERM`; None before it arrives.
    """

    def __init__(self, effect: str) -> None:
        """Prepare the block.

        Args:
            effect: what the first signal leads to, for the message, such as `The run saves after this round and stops`.
        """
        self._effect = effect
        self.name: str | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set signal handlers. In other threads signals keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            # `nohup` ignores SIGHUP for work that goes on without its terminal.
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._before = {
                number: signal.signal(number, self._remember) for number in SIGNALS if number not in ignored
            }
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
            logger.warning("Received %s. %s. Send it again to stop at once.", self.name, self._effect)
        elif now - self._since > _SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

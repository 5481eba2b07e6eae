"""Computing what the next update needs while the current update runs on the GPU."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class ReadAhead:
    """A cache of one value per name, each for an update that has not begun yet.

    The next update of a name is predicted from the distance of its last two. A wrong prediction costs time, but
    changes no value, because every value is a pure function of the number of its update.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without predictions.

        Args:
            device: the device of the training. On a CPU nothing is computed ahead: a second thread would slow down the
                network.
        """
        # Several threads, because a large batch of small clips consists of hundreds of draws.
        self._pool = ThreadPoolExecutor(4, "read-ahead") if device.type == "cuda" else None
        self._ready: dict[Hashable, tuple[int, Future[Any]]] = {}
        self._last: dict[Hashable, int] = {}

    def get(self, name: Hashable, update: int, compute: Callable[[int], T]) -> T:
        """Return `compute(update)`, which may have been computed already, and start to compute the next value.

        Args:
            name: names the value within one update.
            update: number of the update.
            compute: a pure function of the number of the update, called in any thread. A tensor that was computed
                ahead is in pinned memory, from which a GPU copies faster.
        """
        if self._pool is None:
            return compute(update)
        expected, future = self._ready.pop(name, (None, None))
        value: T = future.result() if future is not None and expected == update else compute(update)
        step = update - self._last.get(name, update)
        self._last[name] = update
        if step > 0:
            self._ready[name] = (update + step, self._pool.submit(_pinned, compute, update + step))
        return value


def _pinned(compute: Callable[[int], T], update: int) -> T:
    value = compute(update)
    return value.pin_memory() if isinstance(value, Tensor) else value  # type: ignore[return-value]

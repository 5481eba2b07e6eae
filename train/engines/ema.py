"""An exponential moving average (EMA) of the generator's weights.

The averaged weights are smoother than the latest ones. Exports and validation samples use them. A *partition* is the
part of one parameter's state that one process holds (see `engines.state`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config.sections import EmaConfig
from .state import MASTER, EngineState, Partition

_AVERAGE = "average"


class GeneratorEma:
    """The fp32 average of the weights that one engine trains.

    The average is partitioned among the processes in the same way as the optimizer's fp32 weights. Every process
    averages only its own partitions, so an update needs no communication.
    """

    def __init__(self, engine: Any, settings: EmaConfig) -> None:
        """Start the average with the engine's weights.

        Args:
            engine: the DeepSpeed engine, or a `PlainEngine`, that trains the weights.
            settings: decay and start of the average, and where it is stored.
        """
        self._state = EngineState(engine)
        self._settings = settings
        self._updates = 0
        self._kept: list[Tensor] | None = None
        masters = self._masters()
        if engine.zero_optimization_stage() == 0:
            # Without ZeRO the weights stay where they are. To find them takes a small network's CPU as long as an
            # update takes its GPU.
            self._kept = masters
        self._averages = [self._copy(master) for master in masters]

    def _masters(self) -> list[Tensor]:
        if self._kept is not None:
            return self._kept
        return [partition.tensors[MASTER] for partition in self._state.partitions()]

    def _device(self, master: Tensor) -> torch.device:
        return torch.device("cpu") if self._settings.on_cpu else master.device

    def _copy(self, tensor: Tensor) -> Tensor:
        copy = tensor.detach().to(self._device(tensor), copy=True)
        return copy.pin_memory() if self._settings.on_cpu and tensor.is_cuda else copy

    def decay(self) -> float:
        """Return the decay of the newest update.

        It is 0 up to update `start`. The n-th update after that has at most (1 + n) / (10 + n), so that the average
        covers at most about the newest tenth of the updates. With a constant decay, the untrained weights of the start
        would stay in the average for as many updates as it covers.
        """
        averaged = self._updates - self._settings.start
        return min(self._settings.decay, (1 + averaged) / (10 + averaged)) if averaged > 0 else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights after one generator update."""
        self._updates += 1
        decay = self.decay()
        masters = [master.detach().to(self._device(master)) for master in self._masters()]
        # One call for all tensors: a small network has so many that single calls would take longer than the update.
        torch._foreach_lerp_(self._averages, masters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the generator inside a `with` block; a collective call.

        After the block the generator has exactly its own weights again, bit for bit.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in zip(self._averages, self._masters(), strict=True):
            weights = master.clone()
            master.copy_(average)
            average.copy_(weights)
        self._state.refresh_network()

    def partitions(self) -> list[Partition]:
        """Return the averages of this process's partitions; see `SavedState.partitions`."""
        pairs = zip(self._state.partitions(), self._averages, strict=True)
        return [Partition(part.name, part.start, part.size, {_AVERAGE: avg}, part.written) for part, avg in pairs]

    def counter(self) -> int:
        """Return the number of generator updates that have been averaged."""
        return self._updates

    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """Load a saved average; see `SavedState.restore`.

        Args:
            counter: the number of updates that the saved average had averaged.
            read: fills partitions with the saved values.
        """
        self._updates = counter
        read(self.partitions())

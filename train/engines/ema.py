"""An exponential moving average of the generator's weights: smoother than the last ones, and what is exported."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config.sections import EmaConfig
from .state import MASTER, EngineState, Partition

_AVERAGE = "average"


class GeneratorEma:
    """The average of what one engine trains, in fp32 and cut among the processes like the optimizer's own weights.

    Every process averages the part that it holds, so that an update needs no communication.
    """

    def __init__(self, engine: Any, settings: EmaConfig) -> None:
        self._state = EngineState(engine)
        self._settings = settings
        self._updates = 0
        self._averages = [self._copy(master) for master in self._masters()]

    def _masters(self) -> list[Tensor]:
        return [partition.tensors[MASTER] for partition in self._state.partitions()]

    def _copy(self, tensor: Tensor) -> Tensor:
        copy = tensor.detach().to("cpu" if self._settings.on_cpu else tensor.device, copy=True)
        return copy.pin_memory() if self._settings.on_cpu and tensor.is_cuda else copy

    @torch.no_grad()
    def update(self) -> None:
        """Follow one update of the generator; before `start` the average is the weights themselves."""
        self._updates += 1
        decay = self._settings.decay if self._updates > self._settings.start else 0.0
        for average, master in zip(self._averages, self._masters(), strict=True):
            average.lerp_(master.detach().to(average.device), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the generator has the averaged weights; afterwards its own again, to the bit. A collective call."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in zip(self._averages, self._masters(), strict=True):
            own = master.clone()
            master.copy_(average)
            average.copy_(own)
        self._state.refresh_network()

    def partitions(self) -> list[Partition]:
        """As `SavedState.partitions`."""
        cut = zip(self._state.partitions(), self._averages, strict=True)
        return [Partition(own.name, own.start, own.size, {_AVERAGE: average}, own.written) for own, average in cut]

    def counter(self) -> int:
        """How many updates of the generator it has followed."""
        return self._updates

    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """As `SavedState.restore`."""
        self._updates = counter
        read(self.partitions())

"""Every random choice of a training run, as a pure function of the seed and of where it is made.

Nothing here has state: noise, levels, exit levels and the data order are drawn from generators keyed by (seed, purpose,
update, position). A resumed run therefore needs no saved RNG, every process derives the same shared choices without
communication, and the same global batch sees the same draws on any number of processes.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from magicdistill_core.objectives.noise_levels import sample_sigma


def keyed_generator(*key: str | int) -> torch.Generator:
    """A CPU generator for one key; equal keys give equal streams."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> list[int]:
    """The shuffled samples of an epoch; cached, because every position of a batch needs it."""
    order: list[int] = torch.randperm(length, generator=keyed_generator(seed, "epoch", epoch)).tolist()
    return order


class Draws:
    """The draws of one run.

    Attributes:
        attempt: a run that went back after a collapse draws other noise, levels and exits than the first time; the
            order of the data stays.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.attempt = 0

    def generator(self, *key: str | int) -> torch.Generator:
        """A CPU generator of this run for one purpose and place."""
        return keyed_generator(self.seed, *key)

    def _of_attempt(self, *key: str | int) -> torch.Generator:
        return self.generator(*key, f"attempt-{self.attempt}") if self.attempt else self.generator(*key)

    def each(
        self, purpose: str, update: int, positions: list[int], draw: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        """What `draw` draws from one stream for each position in the global batch, stacked: `[len(positions), ...]`."""
        return torch.stack([draw(self._of_attempt(purpose, update, position)) for position in positions])

    def noise(self, purpose: str, update: int, positions: list[int], shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise `[len(positions), *shape]`, one stream for each position in the global batch."""
        return self.each(purpose, update, positions, lambda generator: torch.randn(shape, generator=generator))

    def sigma(self, purpose: str, update: int, positions: list[int], shift: float) -> Tensor:
        """Noise levels `[len(positions)]` of the losses (see `sample_sigma`)."""
        return self.each(purpose, update, positions, lambda generator: sample_sigma(1, shift, generator)[0])

    def exit_index(self, update: int, levels: int) -> int:
        """The rollout's exit level, uniform and one for the whole update: every process makes as many calls."""
        return int(torch.randint(levels, (), generator=self._of_attempt("exit", update)))

    def sample_indices(self, batch_number: int, positions: list[int], batch_size: int, length: int) -> list[int]:
        """Which samples the positions of global batch `batch_number` hold: epochs are shuffled, without repeats."""
        indices = []
        for position in positions:
            epoch, place = divmod(batch_number * batch_size + position, length)
            indices.append(_epoch_order(self.seed, epoch, length)[place])
        return indices

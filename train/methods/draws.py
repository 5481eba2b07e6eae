"""Every random draw of a training run, as a pure function of the seed, the purpose, the update and the position.

Draws have no state: noise, levels, exit levels and the data order come from generators keyed by (seed, purpose, update,
position). This has three effects:

- A resumed run needs no saved RNG state.
- All processes draw the same shared values without communication.
- The same global batch gets the same draws on any number of processes.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from magicdistill_core.objectives.noise_levels import sample_sigma


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator for a key; equal keys produce equal streams."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> list[int]:
    """The shuffled sample indices of an epoch; cached, because every position of a batch needs them."""
    order: list[int] = torch.randperm(length, generator=keyed_generator(seed, "epoch", epoch)).tolist()
    return order


class Draws:
    """The draws of one run.

    Attributes:
        attempt: how often the run rolled back after a collapse. Each attempt draws other noise, levels and exits; the
            data order stays the same.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.attempt = 0

    def generator(self, *key: str | int) -> torch.Generator:
        """Return a CPU generator of this run for one purpose, update and position."""
        return keyed_generator(self.seed, *key)

    def _attempt_generator(self, *key: str | int) -> torch.Generator:
        return self.generator(*key, f"attempt-{self.attempt}") if self.attempt else self.generator(*key)

    def each(
        self, purpose: str, update: int, positions: list[int], draw: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        """Call `draw` with a separate generator per position in the global batch.

        Returns:
            The stacked results, `[len(positions), ...]`.
        """
        return torch.stack([draw(self._attempt_generator(purpose, update, position)) for position in positions])

    def noise(self, purpose: str, update: int, positions: list[int], shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise `[len(positions), *shape]`, one stream per position in the global batch."""
        return self.each(purpose, update, positions, lambda generator: torch.randn(shape, generator=generator))

    def sigma(self, purpose: str, update: int, positions: list[int], shift: float) -> Tensor:
        """Draw the noise levels `[len(positions)]` of a loss (see `sample_sigma`)."""
        return self.each(purpose, update, positions, lambda generator: sample_sigma(1, shift, generator)[0])

    def exit_index(self, update: int, levels: int) -> int:
        """Draw the rollout's exit level, uniformly.

        The level is the same for the full global batch, so that every process makes the same number of network calls.
        """
        return int(torch.randint(levels, (), generator=self._attempt_generator("exit", update)))

    def sample_indices(self, batch_number: int, positions: list[int], batch_size: int, length: int) -> list[int]:
        """Return the sample index of each position in a global batch.

        Every epoch contains all samples once, in a shuffled order.

        Args:
            batch_number: the number of the global batch in the run.
            positions: positions in the global batch.
            batch_size: size of the global batch.
            length: number of samples in the dataset.
        """
        indices = []
        for position in positions:
            epoch, place = divmod(batch_number * batch_size + position, length)
            indices.append(_epoch_order(self.seed, epoch, length)[place])
        return indices

"""Every random draw of a training run, as a pure function of the seed, the purpose, the update and the position.

Draws have no state: noise, levels, exit levels and the data order come from generators keyed by (seed, purpose, update,
position). This has three effects:

- A resumed run needs no saved RNG state.
- All processes draw the same shared values without communication.
- The same global batch gets the same draws on any number of processes.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from magicdistill_core.objectives.noise_levels import uniform_sigma

from ..data.read_ahead import ReadAhead

# Positions that one thread draws ahead; a large batch is shared among several threads.
_AT_ONCE = 64


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator for a key; equal keys produce equal streams.

    Args:
        key: the parts of the key, such as seed, purpose, update and position.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> list[int]:
    """Return the shuffled sample indices of an epoch; cached, because every position of a batch needs them."""
    order: list[int] = torch.randperm(length, generator=keyed_generator(seed, "epoch", epoch)).tolist()
    return order


class Draws:
    """The draws of one run.

    A *purpose* is a text that names the use of a draw, such as `loss` or `level`; different purposes have independent
    streams. A *position* is a sample's place in the update's global batch, from 0.

    Attributes:
        seed: the run's seed.
        attempt: how often the run rolled back after a collapse. Each attempt draws other noise, levels and exits; the
            data order stays the same.
    """

    def __init__(self, seed: int, ahead: ReadAhead | None = None) -> None:
        """Start the draws of a run.

        Args:
            seed: the run's seed.
            ahead: draws the noise and the levels of the next update while the current one runs; None draws when asked.
        """
        self.seed = seed
        self.attempt = 0
        self._ahead = ahead

    def generator(self, *key: str | int) -> torch.Generator:
        """Return a CPU generator of this run for a key, usually purpose, update and position. It ignores `attempt`."""
        return keyed_generator(self.seed, *key)

    def _attempt_generator(self, *key: str | int) -> torch.Generator:
        return self.generator(*key, f"attempt-{self.attempt}") if self.attempt else self.generator(*key)

    def each(
        self,
        purpose: str,
        update: int,
        positions: list[int],
        draw: Callable[[torch.Generator], Tensor],
        shape: tuple[int, ...] = (),
    ) -> Tensor:
        """Call `draw` with a separate generator per position in the global batch.

        Args:
            purpose: names the use of the draw.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the global batch.
            draw: draws the tensor of one sample, on the CPU.
            shape: what `draw` depends on besides, so that it is not drawn ahead for an update of another size.

        Returns:
            The stacked results, `[len(positions), ...]`.
        """

        def drawn(places: list[int], number: int) -> Tensor:
            return torch.stack([draw(self._attempt_generator(purpose, number, place)) for place in places])

        if self._ahead is None:
            return drawn(positions, update)
        parts = [positions[first : first + _AT_ONCE] for first in range(0, len(positions), _AT_ONCE)]
        made = [self._ahead.get((purpose, self.attempt, shape, *part), update, partial(drawn, part)) for part in parts]
        return made[0] if len(made) == 1 else torch.cat(made)

    def noise(self, purpose: str, update: int, positions: list[int], shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise `[len(positions), *shape]` on the CPU, with one stream per position.

        Args:
            purpose: names the use of the noise.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the global batch.
            shape: shape of the noise of one sample.
        """
        return self.each(purpose, update, positions, lambda generator: torch.randn(shape, generator=generator), shape)

    def sigma(self, purpose: str, update: int, positions: list[int], shift: float) -> Tensor:
        """Draw the noise levels `[len(positions)]` of a loss on the CPU (see `sample_sigma`).

        Args:
            purpose: names the use of the levels.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the global batch.
            shift: timestep shift s; uniform t becomes `s * t / (1 + (s - 1) * t)`.
        """
        uniform = self.each(purpose, update, positions, lambda generator: torch.rand((), generator=generator))
        return uniform_sigma(uniform, shift)

    def exit_index(self, update: int, levels: int) -> int:
        """Draw the rollout's exit level uniformly, and return its index in the schedule: 0 to `levels - 1`.

        The level is the same for the full global batch, so that every process makes the same number of network calls.

        Args:
            update: number of the update, from 0, counted over all roles.
            levels: number of levels of the schedule, which is its number of steps.
        """
        return int(torch.randint(levels, (), generator=self._attempt_generator("exit", update)))

    def sample_indices(self, batch_number: int, positions: list[int], batch_size: int, length: int) -> list[int]:
        """Return the index in the dataset of the sample at each position of a global batch.

        Every epoch contains all samples once, in a shuffled order.

        Args:
            batch_number: the number of the global batch in the run, from 0.
            positions: positions in the global batch.
            batch_size: size of the global batch.
            length: number of samples in the dataset.
        """
        indices = []
        for position in positions:
            epoch, place = divmod(batch_number * batch_size + position, length)
            indices.append(_epoch_order(self.seed, epoch, length)[place])
        return indices

"""Which dataset an update takes its samples from, if a run trains on several."""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from magicdistill_core.errors import ConfigError, MagicDistillError

from ..data.dataset import LatentDataset
from ..methods.draws import Draws


class Member(NamedTuple):
    """A dataset of a mixture.

    Attributes:
        dataset: the dataset.
        samples: numbers of its samples that the run trains on.
    """

    dataset: LatentDataset
    samples: list[int]


class Mixture:
    """Draws one dataset for each update. Its samples have one size, so all processes compute the same shapes.

    A draw is a pure function of the seed and the update, so all processes agree and a resumed run goes on exactly. Each
    dataset has its own order of samples, in which it goes on whenever it is drawn.
    """

    def __init__(self, members: Sequence[Member], weights: Sequence[float] | None, draws: Draws) -> None:
        """Begin with the first update.

        Args:
            members: the datasets.
            weights: how often each is drawn, in any unit; None draws each sample equally often.
            draws: the random draws of the run.
        """
        self.members = tuple(members)
        parts = [float(len(member.samples)) for member in members] if weights is None else list(weights)
        self._bounds = [bound / sum(parts) for bound in accumulate(parts)]
        self._draws = draws
        # For updates from 0 up, and for those of the warm-up from -1 down: the dataset, and how often it was drawn
        # before.
        self._turns: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        self._counts = tuple([0] * len(members) for _ in range(2))
        self._lock = threading.Lock()  # the next update is read in another thread

    def of(self, update: int) -> tuple[Member, int]:
        """Return the dataset of an update, and the number of the batch in that dataset's order.

        Args:
            update: number of the update, counted over all roles; negative in the fake warm-up.
        """
        if len(self.members) == 1:
            return self.members[0], update
        back = update < 0
        place = -1 - update if back else update
        with self._lock:
            turns, counts = self._turns[back], self._counts[back]
            while len(turns) <= place:
                drawn = self._drawn(-1 - len(turns) if back else len(turns))
                turns.append((drawn, counts[drawn]))
                counts[drawn] += 1
            number, turn = turns[place]
        return self.members[number], -1 - turn if back else turn

    def _drawn(self, update: int) -> int:
        share = float(torch.rand((), generator=self._draws.generator("dataset", update), dtype=torch.float64))
        return min(bisect_right(self._bounds, share), len(self.members) - 1)


def check_mixed(first: LatentDataset, others: Sequence[LatentDataset]) -> None:
    """Refuse datasets that cannot be trained on together.

    Args:
        first: the run's first dataset.
        others: the further ones.

    Raises:
        ConfigError: if one of them is for another family or VAE, has another frame rate, or is named twice.
    """
    for other in others:
        for name in ("family", "vae_sha256", "image_encoder_sha256", "fps"):
            one, two = getattr(first.index, name), getattr(other.index, name)
            if one != two:
                raise ConfigError(
                    f"data.mixed names {other.folder}, whose {name} is {two}, but that of {first.folder} is {one}. "
                    f"Encode both with the same settings, or train on one of them."
                )
    folders = [dataset.folder.resolve() for dataset in (first, *others)]
    if len(set(folders)) < len(folders):
        raise ConfigError("data.dataset and data.mixed name one folder twice. Raise its weight instead (data.weights).")


def member_samples(dataset: LatentDataset, videos: set[str]) -> list[int]:
    """Return the samples of a further dataset that are from none of the videos that are held out.

    Args:
        dataset: the dataset.
        videos: names of the held-out videos.

    Raises:
        MagicDistillError: if no sample remains.
    """
    samples = [number for number, key in enumerate(dataset.index.keys()) if key.rpartition("#")[0] not in videos]
    if not samples:
        raise MagicDistillError(
            f"All samples of {dataset.folder} are windows of held-out videos. Lower data.held_out, or leave it out of "
            f"data.mixed."
        )
    return samples

"""What a measure is: its numbers, the networks that it needs, and how it reads a video."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..folders import Item
from ..frames import VideoFacts
from ..scores import Scores


class NotScoredError(Exception):
    """Raised when a measure cannot score one video, such as one that is too short; the message is a sentence."""


class Accumulator(Protocol):
    """Reads the frames of one video in order."""

    def add(self, frames: Tensor) -> None:
        """Read the next frames, `[n, H, W, 3]`, uint8."""

    def finish(self) -> Scores:
        """Return the scores of the video.

        Raises:
            NotScoredError: if the video cannot be scored.
        """


Start = Callable[[Item, VideoFacts], Accumulator]
"""Begins a video. It raises NotScoredError if the video cannot be scored."""


@dataclass(frozen=True)
class Column:
    """A number of a measure.

    Attributes:
        name: its name in the result.
        title: its title in tables.
        better: `higher`, `lower`, or empty where neither is.
        digits: digits after the point.
    """

    name: str
    title: str
    better: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """The title with an arrow for the better direction."""
        return self.title + {"higher": " (↑)", "lower": " (↓)", "": ""}[self.better]


@dataclass(frozen=True)
class SetDistance:
    """A Frechet distance between the features of a folder and those of the reference folder.

    Attributes:
        column: the number.
        features: name of the features in `Scores.features`.
        needed: number of feature vectors below which the distance is meaningless: the length of a vector.
    """

    column: Column
    features: str
    needed: int


@dataclass(frozen=True)
class Measure:
    """A measure of single videos.

    Attributes:
        key: its name for `--measures` and in the cache.
        group: the table in which its numbers stand: `vbench`, `sets`, `picture`, `reference` or `face`.
        columns: its numbers.
        make: loads the networks from their files, and returns how a video begins.
        networks: keys of `network_files.NETWORKS`.
        uses_image: whether a video's start image changes its scores.
        uses_reference: whether it compares with a reference video, and scores only videos that have one.
        distance: the distance between sets, if it gives features.
        settings: settings that change its numbers.
        version: raised when its numbers change, so that the cache is not used.
    """

    key: str
    group: str
    columns: tuple[Column, ...]
    make: Callable[[Mapping[str, Path], torch.device], Start]
    networks: tuple[str, ...] = ()
    uses_image: bool = False
    uses_reference: bool = False
    distance: SetDistance | None = None
    settings: tuple[int, ...] = ()
    version: int = 1


class Sampled:
    """Chooses every n-th frame of a stream of groups."""

    def __init__(self, step: int) -> None:
        self.step = max(1, step)
        self._next = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the chosen frames of the next group; it may be empty."""
        chosen = frames[self._next :: self.step]
        self._next = self._next + len(chosen) * self.step - len(frames)
        return chosen


def planes(frames: Tensor) -> Tensor:
    """Return frames `[n, H, W, 3]` of uint8 as `[n, 3, H, W]` of float32 in [0, 1]."""
    return frames.movedim(-1, 1).float() / 255


def with_short_side(frames: Tensor, side: int) -> Tensor:
    """Return frames `[n, H, W, 3]` of uint8 as `[n, 3, h, w]` in [0, 1], with a short side of at most `side`."""
    pixels = planes(frames)
    height, width = pixels.shape[-2:]
    factor = side / min(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(pixels, size, mode="area")

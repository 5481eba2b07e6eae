"""Features for Frechet distances between folders: Inception (FID), I3D (FVD), EfficientNet-lite0."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.errors import ConfigError

from ..frames import VideoFacts
from ..networks.others import Features
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Sampled, SetDistance, Start

_INCEPTION_LENGTH, _I3D_LENGTH, _EFFICIENTNET_LENGTH = 2048, 400, 1280
# I3D halves time three times and then looks at two steps together.
_LEAST_FRAMES = 10
_SQUARE = 224
_PER_SECOND = 4


class FrameFeatures:
    """Feature vectors of frames."""

    def __init__(self, name: str, features: Features, step: int, size: tuple[int, int] | None = None) -> None:
        """Begin a video.

        Args:
            name: name of the features.
            features: a network from uint8 pictures `[n, 3, H, W]` to vectors.
            step: every how many-th frame it sees.
            size: height and width to which frames are resized; None leaves them as they are.
        """
        self._name, self._features, self._size = name, features, size
        self._chosen = Sampled(step)
        self._found: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        chosen = self._chosen(frames)
        if not len(chosen):
            return
        pictures = chosen.movedim(-1, 1)
        if self._size is not None:
            resized = F.interpolate(pictures.float(), self._size, mode="bilinear", antialias=True)
            pictures = resized.round().clamp(0, 255).to(torch.uint8)
        self._found.append(self._features(pictures))

    def finish(self) -> Scores:
        return Scores(features={self._name: torch.cat(self._found)})


class ClipFeatures:
    """One feature vector of the first frames of a video."""

    def __init__(self, name: str, features: Features, count: int) -> None:
        """Begin a video.

        Args:
            name: name of the features.
            features: a network from clips `[1, 3, T, H, W]` in levels of 0 to 255 to vectors.
            count: number of frames.
        """
        self._name, self._features, self._count = name, features, count
        self._frames: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        missing = self._count - sum(map(len, self._frames))
        if missing > 0:
            self._frames.append(frames[:missing].clone())

    def finish(self) -> Scores:
        clip = torch.cat(self._frames)
        if len(clip) < self._count:
            raise NotScoredError(f"it has {len(clip)} frames, fewer than the {self._count} of --fvd-frames")
        return Scores(features={self._name: self._features(clip.permute(3, 0, 1, 2)[None])})


def _make_inception(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.others import load_inception

    network = load_inception(files["inception"], device)
    return lambda _item, _facts: FrameFeatures("inception", network, 1)


def _make_i3d(count: int, files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.others import load_i3d

    network = load_i3d(files["i3d"], device)
    return lambda _item, _facts: ClipFeatures("i3d", network, count)


def _make_efficientnet(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.efficientnet import load_efficientnet

    network = load_efficientnet(files["efficientnet"], device)

    def start(_item: object, facts: VideoFacts) -> FrameFeatures:
        return FrameFeatures("efficientnet", network, round(facts.fps / _PER_SECOND), (_SQUARE, _SQUARE))

    return start


FID = Measure(
    "fid",
    "sets",
    (),
    _make_inception,
    ("inception",),
    distance=SetDistance(Column("fid", "FID", "lower", 2), "inception", _INCEPTION_LENGTH),
)
EFFICIENTNET = Measure(
    "efficientnet_frechet",
    "sets",
    (),
    _make_efficientnet,
    ("efficientnet",),
    distance=SetDistance(
        Column("efficientnet_frechet", "Frechet distance by EfficientNet-lite0", "lower", 3),
        "efficientnet",
        _EFFICIENTNET_LENGTH,
    ),
)


def fvd(frames: int) -> Measure:
    """Return FVD for clips of a number of frames.

    Args:
        frames: number of frames.

    Raises:
        ConfigError: if I3D cannot read so few.
    """
    if frames < _LEAST_FRAMES:
        raise ConfigError(f"I3D needs clips of at least {_LEAST_FRAMES} frames. --fvd-frames is {frames}.")
    return Measure(
        "fvd",
        "sets",
        (),
        partial(_make_i3d, frames),
        ("i3d",),
        distance=SetDistance(Column("fvd", f"FVD ({frames} frames)", "lower", 2), "i3d", _I3D_LENGTH),
        settings=(frames,),
    )

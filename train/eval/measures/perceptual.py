"""LPIPS: how far a video moves from its start image."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.media.video import read_image, resize_crop

from ..folders import Item
from ..frames import VideoFacts
from ..networks.lpips import LPIPS, load_lpips
from ..scores import Scores
from .base import Column, Measure, Sampled, Start, with_short_side

_SIDE = 256
_PER_SECOND = 4


class _StartImage:
    def __init__(self, network: LPIPS, device: torch.device, item: Item, facts: VideoFacts) -> None:
        self._network, self._device = network, device
        self._chosen = Sampled(round(facts.fps / _PER_SECOND))
        self._rate = facts.fps / self._chosen.step
        self._start: Tensor | None = None
        if item.image is not None:
            image = resize_crop(read_image(item.image), facts.height, facts.width)
            self._start = with_short_side(image[None], _SIDE).to(device)
        self._curve: list[float] = []

    def add(self, frames: Tensor) -> None:
        for frame in self._chosen(frames):
            picture = with_short_side(frame[None], _SIDE).to(self._device)
            if self._start is None:
                self._start = picture
            self._curve.append(float(self._network(self._start, picture)))

    def finish(self) -> Scores:
        return Scores({"lpips_start": sum(self._curve) / len(self._curve)}, {"lpips_start": self._curve}, self._rate)


def _make(files: Mapping[str, Path], device: torch.device) -> Start:
    network = load_lpips(files["lpips"], device)
    return lambda item, facts: _StartImage(network, device, item, facts)


PERCEPTUAL = Measure(
    "lpips",
    "picture",
    (Column("lpips_start", "LPIPS to the start image", "", 3),),
    _make,
    ("lpips",),
    uses_image=True,
)

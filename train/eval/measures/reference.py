"""Comparisons with the reference video of the same name, frame by frame: PSNR, SSIM and LPIPS."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.media.video import read_video, resize_crop
from magicdistill_core.metrics.similarity import psnr, ssim

from ..folders import Item
from ..frames import VideoFacts
from ..networks.lpips import LPIPS, load_lpips
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Sampled, Start, planes, with_short_side

_LPIPS_SIDE = 256
_LPIPS_PER_SECOND = 8


class ReferenceFrames:
    """The frames of a reference video at the frame rate and the size of the video that it is compared with."""

    def __init__(self, item: Item, facts: VideoFacts) -> None:
        """Open the reference.

        Raises:
            NotScoredError: if the video has none.
            VideoError: if it cannot be read.
        """
        if item.reference is None:
            raise NotScoredError("no reference has its name")
        self._facts = facts
        self._frames: Iterator[Tensor] = read_video(item.reference, facts.fps).frames
        self.ended = False

    def like(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return as many of the frames as the reference has, and the reference's frames, `[n, H, W, 3]`."""
        found: list[Tensor] = []
        while len(found) < len(frames) and not self.ended:
            frame = next(self._frames, None)
            if frame is None:
                self.ended = True
            else:
                found.append(resize_crop(frame, self._facts.height, self._facts.width))
        count = len(found)
        return frames[:count], torch.stack(found) if found else frames[:0]

    def note(self, compared: int, frames: int) -> list[str]:
        """Return a sentence if the reference is shorter than the video."""
        return [f"the reference has only {compared} of {frames} frames"] if compared < frames else []


class _Pixelwise:
    def __init__(self, item: Item, facts: VideoFacts) -> None:
        self._reference = ReferenceFrames(item, facts)
        self._rate, self._count = facts.fps, 0
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    def add(self, frames: Tensor) -> None:
        self._count += len(frames)
        ours, theirs = self._reference.like(frames)
        if len(ours):
            x, y = planes(ours), planes(theirs)
            self._psnr += psnr(x, y).tolist()
            if min(x.shape[-2:]) >= 11:
                self._ssim += ssim(x, y).tolist()

    def finish(self) -> Scores:
        values = {"psnr": sum(self._psnr) / len(self._psnr)}
        if self._ssim:
            values["ssim"] = sum(self._ssim) / len(self._ssim)
        curves = {"psnr": self._psnr, "ssim": self._ssim}
        return Scores({**values}, curves, self._rate, notes=self._reference.note(len(self._psnr), self._count))


class _Perceptual:
    def __init__(self, network: LPIPS, device: torch.device, item: Item, facts: VideoFacts) -> None:
        self._network, self._device = network, device
        self._reference = ReferenceFrames(item, facts)
        self._chosen = tuple(Sampled(round(facts.fps / _LPIPS_PER_SECOND)) for _ in range(2))
        self._rate = facts.fps / self._chosen[0].step
        self._curve: list[float] = []

    def add(self, frames: Tensor) -> None:
        pair = self._reference.like(frames)
        ours, theirs = (chosen(part) for chosen, part in zip(self._chosen, pair, strict=True))
        if len(ours):
            x, y = (with_short_side(part, _LPIPS_SIDE).to(self._device) for part in (ours, theirs))
            self._curve += self._network(x, y).tolist()

    def finish(self) -> Scores:
        return Scores({"lpips": sum(self._curve) / len(self._curve)}, {"lpips": self._curve}, self._rate)


def _make_pixelwise(_files: Mapping[str, Path], _device: torch.device) -> Start:
    return _Pixelwise


def _make_perceptual(files: Mapping[str, Path], device: torch.device) -> Start:
    network = load_lpips(files["lpips"], device)
    return lambda item, facts: _Perceptual(network, device, item, facts)


PSNR_SSIM = Measure(
    "psnr_ssim",
    "reference",
    (Column("psnr", "PSNR (dB)", "higher", 2), Column("ssim", "SSIM", "higher", 4)),
    _make_pixelwise,
    uses_reference=True,
)
LPIPS_REFERENCE = Measure(
    "lpips_reference",
    "reference",
    (Column("lpips", "LPIPS (AlexNet)", "lower", 4),),
    _make_perceptual,
    ("lpips",),
    uses_reference=True,
)

"""What pixels alone say: VBench's temporal flickering, motion, sharpness and colours over time, and defects."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.long_video.drift import FrameNumbers, numbers_of
from magicdistill_core.metrics.defects import find_defects
from magicdistill_core.metrics.vbench import temporal_flickering

from ..frames import VideoFacts
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Start, with_short_side

_SMALL = 48
# Of frames in random order; looping videos have up to 0.4.
_DISORDERED = 0.7
# Colours and sharpness are measured on pictures with this short side. They are then the same for copies of other sizes,
# and take no longer for large videos.
_SIDE = 256


class _Pixels:
    def __init__(self, facts: VideoFacts) -> None:
        self._facts = facts
        self._last: Tensor | None = None
        self._steps: list[float] = []
        self._numbers = FrameNumbers([], [], [], [], [])
        self._small: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        joined = frames if self._last is None else torch.cat([self._last[None], frames])
        for before, after in pairwise(joined):
            self._steps.append(float((after.short() - before.short()).abs().float().mean()))
        self._last = frames[-1]
        resized = with_short_side(frames, _SIDE)
        self._numbers = self._numbers + numbers_of(resized.movedim(1, -1))
        self._small.append(255 * F.interpolate(resized.mean(1, keepdim=True), (_SMALL, _SMALL), mode="area")[:, 0])

    def finish(self) -> Scores:
        if not self._steps:
            raise NotScoredError("it has a single frame")
        fps, steps = self._facts.fps, torch.tensor(self._steps)
        defects = find_defects(torch.cat(self._small), fps)
        numbers = self._numbers
        notes = []
        if defects.frozen:
            notes.append(f"frozen: {defects.frozen:.0%} of the frames stand still, from frame {defects.frozen_from}")
        if defects.flashes:
            places = ", ".join(map(str, defects.flashes[:5]))
            notes.append(
                f"flashing: {len(defects.flashes)} frames flash ({places}{'...' if defects.flashes[5:] else ''})"
            )
        if defects.period:
            notes.append(f"looping: it repeats itself every {defects.period / fps:.2f} s ({defects.period} frames)")
        if defects.disorder > _DISORDERED:
            notes.append(f"disordered: neighbouring frames differ {defects.disorder:.0%} as much as any two frames")
        return Scores(
            {
                "temporal_flickering": temporal_flickering(steps),
                "motion": float(steps.mean()),
                "sharpness": _mean(numbers.sharpness),
                "contrast": _mean(numbers.contrast),
                "frozen": defects.frozen,
                "flashes": float(len(defects.flashes)),
                "loop_seconds": defects.period / fps if defects.period else None,
                "disorder": defects.disorder,
                "jump": _jump(steps),
            },
            {
                "sharpness": numbers.sharpness,
                "contrast": numbers.contrast,
                "red": numbers.red,
                "green": numbers.green,
                "blue": numbers.blue,
                "motion": [float("nan"), *self._steps],
            },
            fps,
            notes=notes,
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _jump(steps: Tensor) -> float:
    """Return the largest change between two frames, as a multiple of the usual one: cuts and shuffled frames."""
    return float(steps.max() / steps.median().clamp(min=0.1))


def _make(_files: Mapping[str, Path], _device: torch.device) -> Start:
    return lambda _item, facts: _Pixels(facts)


PIXELS = Measure(
    "pixels",
    "picture",
    (
        Column("temporal_flickering", "temporal flickering", "higher", 4),
        Column("motion", "motion (levels a frame)", "", 2),
        Column("sharpness", "sharpness (levels)", "", 2),
        Column("contrast", "contrast (levels)", "", 1),
        Column("frozen", "frozen (share of frames)", "lower", 3),
        Column("flashes", "flashes", "lower", 2),
        Column("loop_seconds", "period of a loop (s)", "", 2),
        Column("disorder", "disorder", "lower", 2),
        Column("jump", "largest jump (times the usual change)", "lower", 1),
    ),
    _make,
    version=2,
)

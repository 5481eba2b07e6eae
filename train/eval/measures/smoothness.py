"""Motion smoothness: how well a network predicts odd frames from even ones. VBench's is that of AMT-S."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.metrics.vbench import motion_smoothness

from ..frames import VideoFacts
from ..networks.others import Interpolate
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Start


class Smoothness:
    """Compares each odd frame with the frame that a network makes from its neighbours."""

    def __init__(self, name: str, interpolate: Interpolate, divisor: int, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            name: name of the value and of the curve.
            interpolate: a network that makes the frame in the middle.
            divisor: the sides of its pictures are padded to multiples of it, by repeating the edges.
            facts: the video's facts.
        """
        self._name, self._interpolate, self._divisor = name, interpolate, divisor
        self._rate = facts.fps / 2
        self._recent: list[Tensor] = []
        self._errors: list[float] = []

    def add(self, frames: Tensor) -> None:
        for frame in frames:
            self._recent.append(frame)
            if len(self._recent) == 3:
                self._errors.append(self._error(*self._recent))
                self._recent = self._recent[2:]

    def _error(self, before: Tensor, odd: Tensor, after: Tensor) -> float:
        height, width = odd.shape[:2]
        rows, columns = -height % self._divisor, -width % self._divisor
        left, top = columns // 2, rows // 2
        edges = (left, columns - left, top, rows - top)
        pair = [F.pad(frame.movedim(-1, 0)[None].float() / 255, edges, mode="replicate") for frame in (before, after)]
        made = self._interpolate(*pair)[0, :, top : top + height, left : left + width]
        # VBench cuts the levels of the made frame to whole numbers.
        levels = (255 * made).clamp(0, 255).to(torch.uint8).movedim(0, -1)
        return float((levels.short() - odd.short()).abs().float().mean())

    def finish(self) -> Scores:
        if not self._errors:
            raise NotScoredError("it has fewer than 3 frames")
        errors = torch.tensor(self._errors)
        return Scores({self._name: motion_smoothness(errors)}, {self._name: (1 - errors / 255).tolist()}, self._rate)


def _make_amt(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.others import load_amt

    interpolate = load_amt(files["amt"], device)
    return lambda _item, facts: Smoothness("motion_smoothness", interpolate, 16, facts)


def _make_rife(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.rife import load_rife

    interpolate = load_rife(files["rife"], device)
    return lambda _item, facts: Smoothness("rife_smoothness", interpolate, 32, facts)


SMOOTHNESS = Measure(
    "motion_smoothness",
    "vbench",
    (Column("motion_smoothness", "motion smoothness", "higher", 4),),
    _make_amt,
    ("amt",),
)
RIFE_SMOOTHNESS = Measure(
    "rife_smoothness",
    "picture",
    (Column("rife_smoothness", "smoothness by RIFE v4", "higher", 4),),
    _make_rife,
    ("rife",),
)

"""Memory does not grow with the length of a video."""

import multiprocessing
import resource
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.long_video.making import LongSettings, make_long_video
from magicdistill_core.long_video.plan import plan_video

SIDE, FRAMES = 160, 33


class Noise:
    """A model whose segments are noise on the picture from which they start."""

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        return start[0]

    def decode(self, latents: Tensor) -> Tensor:
        return (latents + 0.02 * torch.randn(FRAMES, SIDE, SIDE, 3)).clamp(0, 1)


def _peak(seconds: float, folder: Path) -> int:
    """Return the largest memory of this process in bytes, after it has made a video."""
    torch.set_num_threads(1)
    plan, settings = plan_video(seconds, 24, FRAMES), LongSettings({}, Fraction(24))
    portrait = torch.full((SIDE, SIDE, 3), 0.5)
    make_long_video(plan, settings, Noise(), portrait, folder / "parts", folder / "long.mp4")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_minute_needs_as_much_memory_as_ten_seconds(tmp_path: Path) -> None:
    peaks = []
    for seconds in (10, 60):
        # Each in a process of its own: the largest memory of a process never falls.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(_peak, (seconds, tmp_path / f"{seconds}")))
    assert peaks[1] < 1.05 * peaks[0], peaks

"""A continued video: its frames come first, and the first segment starts from its last ones."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from magicdistill_core.errors import VideoError
from magicdistill_core.long_video.making import make_long_video
from magicdistill_core.long_video.opening import write_opening
from magicdistill_core.long_video.plan import plan_video

from .test_making import PORTRAIT, SETTINGS, SIDE, Scroller, frames, same

CLIP = [PORTRAIT.roll(time, dims=0) for time in range(13)]


@pytest.mark.parametrize(("overlap", "dropped"), [(1, 0), (3, 0), (1, 2)])
def test_the_video_goes_on_from_its_last_frames(tmp_path: Path, overlap: int, dropped: int) -> None:
    plan = plan_video(20 / 24, 24, 9, overlap, dropped)
    opening = write_opening(iter(CLIP), plan, SIDE, SIDE, Fraction(24), 10, tmp_path / "parts")
    assert opening.frames == 13 - overlap
    assert torch.allclose(opening.tail, torch.stack(CLIP[13 - overlap - dropped :]), atol=1e-6)
    model = Scroller()
    made = make_long_video(
        plan, replace(SETTINGS, crf=10), model, PORTRAIT, tmp_path / "parts", tmp_path / "long.mp4", opening=opening
    )
    video = frames(made.path)
    assert len(video) == made.frames == 13 - overlap + 20
    assert made.segments[0]["first_frame"] == 13 - overlap
    expected = (torch.stack(CLIP[: 13 - overlap]) * 255).round().numpy()
    assert np.abs(video[: 13 - overlap] - expected).mean() < 4
    # The first segment scrolls the first frame that it shares with the video.
    speed = 1 + model.made[0][1] % 3
    shown = CLIP[13 - overlap - dropped].roll(speed * (overlap + dropped), dims=1)
    assert np.abs(video[13] - (shown * 255).round().numpy()).mean() < 4


def test_another_video_makes_other_segments(tmp_path: Path) -> None:
    plan = plan_video(20 / 24, 24, 9)

    def make(clip: list[torch.Tensor], model: Scroller) -> np.ndarray:
        folder = tmp_path / "parts"
        opening = write_opening(iter(clip), plan, SIDE, SIDE, Fraction(24), 18, folder)
        made = make_long_video(plan, SETTINGS, model, PORTRAIT, folder, tmp_path / "long.mp4", opening=opening)
        return frames(made.path)

    first, again, other = Scroller(), Scroller(), Scroller()
    video = make(CLIP, first)
    assert same(make(CLIP, again), video)
    make(CLIP[:-1], other)
    assert [len(model.made) for model in (first, again, other)] == [3, 0, 3]


@pytest.mark.parametrize("count", [0, 1])
def test_a_video_that_is_too_short_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(VideoError, match=f"has {count} frame.* expected more than 1"):
        write_opening(iter(CLIP[:count]), plan_video(1, 24, 9), SIDE, SIDE, Fraction(24), 18, tmp_path)
    assert not list(tmp_path.glob("*.mp4"))

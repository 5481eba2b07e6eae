"""The plan shows every frame of the video exactly once, and refuses lengths and overlaps that are impossible."""

import pytest

from magicdistill_core.errors import VideoError
from magicdistill_core.long_video.plan import Plan, plan_video


def shown_frames(plan: Plan) -> list[int]:
    """The frames of the long video that each segment shows, one after another."""
    frames = []
    for number in range(plan.segments):
        first, count = plan.first_frame(number), plan.shown(number)
        assert 0 < count <= plan.segment_frames - plan.dropped
        frames += range(first, first + count)
    return frames


@pytest.mark.parametrize("seconds", [1 / 24, 0.5, 17 / 24, 18 / 24, 2, 10, 60])
@pytest.mark.parametrize(("length", "overlap", "dropped"), [(17, 1, 0), (17, 5, 0), (129, 1, 4), (81, 9, 4), (5, 1, 1)])
def test_every_frame_is_shown_once(seconds: float, length: int, overlap: int, dropped: int) -> None:
    plan = plan_video(seconds, 24, length, overlap, dropped)
    assert plan.frames == round(seconds * 24)
    assert shown_frames(plan) == list(range(plan.frames))


def test_a_video_of_one_segment_needs_one() -> None:
    assert plan_video(17 / 24, 24, 17).segments == 1
    assert plan_video(18 / 24, 24, 17).segments == 2
    # A minute: the first segment shows 129 frames less the overlap, and so does each other one.
    assert plan_video(60, 24, 129).segments == 12


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e6])
def test_impossible_lengths_are_refused(seconds: float) -> None:
    with pytest.raises(VideoError, match=r"expected more than 0 and at most 3600"):
        plan_video(seconds, 24, 17)


@pytest.mark.parametrize(("overlap", "dropped", "expected"), [(0, 0, "1 to 16"), (17, 0, "1 to 16"), (10, 4, "1 to 9")])
def test_impossible_overlaps_are_refused(overlap: int, dropped: int, expected: str) -> None:
    with pytest.raises(VideoError, match=f"overlap is {overlap} frames, expected {expected} "):
        plan_video(2, 24, 17, overlap, dropped)


def test_segments_that_add_nothing_are_refused() -> None:
    with pytest.raises(VideoError, match="1 frames adds nothing"):
        plan_video(2, 24, 1)
    with pytest.raises(VideoError, match="frame rate is 0"):
        plan_video(2, 0, 17)

import pytest

from magicdistill_core.metrics.first_last import first_last


def test_both_definitions_of_a_ramp() -> None:
    drift = first_last(list(range(400)), 20)  # 20 seconds
    assert drift.share == 340  # the means of the first and the last 60 of 400
    assert drift.seconds == 300  # those of the first and the last 100


def test_a_video_below_ten_seconds_has_no_drift_in_seconds() -> None:
    assert first_last([1.0] * 199, 20).seconds is None
    assert first_last([1.0] * 200, 20).seconds == 0


def test_frames_without_a_value_are_left_out() -> None:
    nan = float("nan")
    # The first three are 1, nothing and 0; the last three 0, nothing and 3.
    assert first_last([1.0, nan, *[0.0] * 16, nan, 3.0], 1).share == pytest.approx(1)
    assert first_last([nan] * 3 + [1.0] * 17, 1).share is None


@pytest.mark.parametrize("curve", [[], [1.0]])
def test_too_short_curves_have_no_drift(curve: list[float]) -> None:
    assert first_last(curve, 24).share is None

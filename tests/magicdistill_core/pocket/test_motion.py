"""The motion of pocket portraits: it continues the first frame, and does what its direction says."""

from dataclasses import astuple

import numpy as np
import pytest

from magicdistill_core.pocket.motion import (
    TURNS,
    Beginning,
    Direction,
    Future,
    Turn,
    eyelid_closure,
    mouth_opening,
    sample_beginning,
    sample_direction,
    sample_future,
    yaw,
)

SECONDS = np.arange(17) / 24


def _draw(number: int, direction: Direction) -> tuple[Beginning, Future]:
    rng = np.random.default_rng(number)
    return sample_beginning(rng), sample_future(rng, direction)


@pytest.mark.parametrize("number", range(20))
def test_every_future_begins_at_the_first_frame(number: int) -> None:
    rng = np.random.default_rng(number)
    start = sample_beginning(rng)
    for _ in range(5):
        future = sample_future(rng, sample_direction(rng))
        assert yaw(start, future, SECONDS)[0] == pytest.approx(start.yaw)
        assert mouth_opening(start, future, SECONDS)[0] == pytest.approx(start.mouth, abs=1e-6)
        assert eyelid_closure(future, SECONDS)[0] == pytest.approx(0)
        assert future.brow.at(SECONDS)[0] == 0


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("number", range(10))
def test_the_head_turns_to_the_side_that_the_direction_names(number: int, turn: Turn) -> None:
    start, future = _draw(number, Direction(turn, speaks=True, blinks=False))
    change = yaw(start, future, SECONDS)[-1] - start.yaw
    side = {"left": -1, "still": 0, "right": 1}[turn]
    if side == 0:
        assert abs(change) < 0.07
    else:
        assert side * change > 0.08


@pytest.mark.parametrize("number", range(20))
def test_the_mouth_speaks_only_if_told(number: int) -> None:
    start, future = _draw(number, Direction("still", speaks=True, blinks=False))
    opening = mouth_opening(start, future, SECONDS)
    assert opening.max() - opening.min() > 0.08
    assert opening.min() >= 0
    start, future = _draw(number, Direction("still", speaks=False, blinks=False))
    opening = mouth_opening(start, future, SECONDS)
    assert np.all(np.diff(opening) <= 0)
    assert np.all(opening[SECONDS > 0.2] == 0)


@pytest.mark.parametrize("number", range(20))
def test_the_eyes_close_only_if_told(number: int) -> None:
    assert eyelid_closure(_draw(number, Direction("still", True, True))[1], SECONDS).max() == pytest.approx(1)
    assert eyelid_closure(_draw(number, Direction("still", True, False))[1], SECONDS).max() == pytest.approx(0)


def test_a_long_clip_blinks_again() -> None:
    closed = eyelid_closure(_draw(3, Direction("still", True, True))[1], np.arange(24 * 12) / 24) > 0.5
    assert 3 <= np.sum(np.diff(closed.astype(int)) == 1) <= 6


def test_futures_do_not_depend_on_the_beginning() -> None:
    """The first frame and the future are independent draws, so futures of one beginning are exact conditional draws."""
    rng = np.random.default_rng(0)
    pairs = [(astuple(sample_beginning(rng)), sample_future(rng, sample_direction(rng))) for _ in range(2000)]
    first = np.array([start for start, _ in pairs])
    turns = np.array([[future.turn, future.speech, future.blink_time] for _, future in pairs])
    correlation = np.corrcoef(first.T, turns.T)[: first.shape[1], first.shape[1] :]
    assert np.abs(correlation).max() < 4.5 / 2000**0.5

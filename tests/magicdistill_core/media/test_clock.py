import random
from fractions import Fraction
from itertools import pairwise

import pytest

from magicdistill_core.media.clock import Clock, Pace, measure_pace

FPS = Fraction(25)
PACE = Pace(FPS, 0.04)


def ticked(
    stated: list[float | None], duration: float | None = 100.0, restarts: bool = False
) -> tuple[list[float], list[int]]:
    clock = Clock(PACE, duration, restarts)
    pairs = [clock.tick(time) for time in stated]
    return [round(time, 6) for time, _ in pairs], [number for number, (_, gap) in enumerate(pairs) if gap]


def frames(*numbers: float | None) -> list[float | None]:
    return [None if number is None else number / 25 for number in numbers]


@pytest.mark.parametrize(
    ("stated", "times", "gaps"),
    [
        (range(5), range(5), []),
        ([0, None, None, 3], range(4), []),
        ([None, None, None], range(3), []),
        ([0, 0, 2, 2, 4, 4], range(6), []),  # bursts of a camera
        ([0, 0, 0, 0], range(4), []),
        ([0, 1, 2, 1, 4], range(5), []),  # a wrong order
        ([-3, -2, -1, 0], range(-3, 1), []),
        ([0, 1, 5, 6], [0, 1, 5, 6], []),  # a phone in the dark
        ([0, 1, 7, 8], [0, 1, 7, 8], [2]),
        ([0, 1, 500, 501], [0, 1, 500, 501], [2]),
        ([0, 1, 2600, 2601], [0, 1, 2, 3], [2]),  # later than the end of the file
        ([50, 51, 52, 0, 1, 2], range(50, 56), [3]),  # joined files
        ([50, 51, 0, 1, 0, 1], range(50, 56), [2]),  # the second restart is too small for a gap
        ([2000, 2001, 2.0**30, 2.0**30 + 1], range(2000, 2004), [2]),
    ],
)
def test_times_never_go_back(stated: list[float], times: list[float], gaps: list[int]) -> None:
    assert ticked(frames(*stated)) == ([round(time / 25, 6) for time in times], gaps)


def test_a_jump_in_a_transmission_is_removed_if_it_is_longer_than_ten_seconds() -> None:
    stated = frames(0, 1, 200, 201, 1000, 1001)
    assert ticked(stated, restarts=True) == ([time / 25 for time in (0, 1, 200, 201, 202, 203)], [2, 4])
    assert ticked(stated, duration=None) == ticked(stated, restarts=True)
    assert ticked(stated) == ([time / 25 for time in (0, 1, 200, 201, 1000, 1001)], [2, 4])


def test_the_clock_of_mpeg_ts_may_overflow() -> None:
    """Its 33 bits at 90 kHz are 26.5 hours."""
    around = [(2**33 / 90000 - 0.08 + n / 25) % (2**33 / 90000) for n in range(5)]
    times, gaps = ticked(around, restarts=True)
    assert [round(b - a, 3) for a, b in pairwise(times)] == [0.04] * 4
    assert gaps == [2]


def test_any_times_become_increasing_times_of_a_sensible_length() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        stated = [draw.choice([None, draw.uniform(-1e9, 1e9), n / 25, draw.uniform(0, 2)]) for n in range(30)]
        clock = Clock(PACE, draw.choice([None, 2.0]), draw.random() < 0.5)
        times = [clock.tick(time)[0] for time in stated]
        assert all(b > a for a, b in pairwise(times))
        assert times[-1] - times[0] < 30 * 10.1


@pytest.mark.parametrize(
    ("stated", "times", "rate"),
    [
        (Fraction(24), [n / 24 for n in range(20)], 24),
        (Fraction(30000, 1001), [round(n * 1.001 / 30, 3) for n in range(20)], Fraction(30000, 1001)),
        (Fraction(48, 61), [n / 24 for n in range(24)], 24),  # the average over a gap
        (Fraction(1000), [round(n / 30, 3) for n in range(40)], 30),  # a unit of time, not a rate
        (Fraction(90000), [n / 25 for n in range(20)], 25),
        (None, [n / 25 for n in range(20)], 25),
        (Fraction(25), [n / 50 for n in range(20)], 25),  # packets of fields
        (Fraction(12), [], 12),
        (Fraction(24), [5.0], 24),
        (Fraction(240), [n / 240 for n in range(20)], 240),
    ],
)
def test_the_rate_is_what_times_and_header_agree_on(
    stated: Fraction | None, times: list[float], rate: float | Fraction
) -> None:
    pace = measure_pace(stated, times)
    assert pace is not None
    assert pace.rate == pytest.approx(rate, rel=1e-3)


def test_a_stream_without_rate_and_times_has_no_pace() -> None:
    assert measure_pace(None, []) is None
    assert measure_pace(Fraction(0), [1.0, 1.0]) is None

"""Strengths per step: reading them, and where in the sampling each begins to hold."""

import pytest

from magicdistill_core.errors import ConfigError
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.lora_schedule import parse_strengths, strength_changes


@pytest.mark.parametrize("text", ["1, 1, 0.5, 0", "1 1 .5 0", "1;1;0.5;0.0;", " 1,\n1,\t5e-1, -0 "])
def test_strengths_as_people_write_them(text: str) -> None:
    assert parse_strengths(text) == [1, 1, 0.5, 0]


@pytest.mark.parametrize("text", ["", " , ", "1, x", "1, nan", "inf", "1, -10.5", "1, 0,5x"])
def test_what_is_no_list_of_strengths_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="expected one number a step"):
        parse_strengths(text)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 5.0, 17.0])
def test_each_step_is_behind_its_own_change_and_before_the_next(steps: int, shift: float) -> None:
    strengths = [float(number) for number in range(steps)]
    starts = [start for start, _ in strength_changes(strengths, steps)]
    assert len(starts) == steps
    # Noise falls along the sampling: part p stands for the shifted noise level of 1 - p.
    levels = [shift * (1 - start) / (1 + (shift - 1) * (1 - start)) for start in starts]
    for step, sigma in enumerate(few_step_sigmas(steps, shift)[:-1].tolist()):
        assert sum(level >= sigma for level in levels) == step + 1


def test_equal_neighbours_are_one_change_and_surplus_is_left_out() -> None:
    assert strength_changes([1, 1, 0.5, 0, 7], 4) == [(0.0, 1), (0.375, 0.5), (0.625, 0)]
    assert strength_changes([0.5], 8) == [(0.0, 0.5)]

"""Strengths per step: parsing, and the step of each noise level."""

import re

import pytest

from magicdistill_core.errors import ConfigError
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.lora_schedule import parse_strengths, step_at, strength_at


@pytest.mark.parametrize("text", ["1, 1, 0.5, 0", "1 1 .5 0", "1;1;0.5;0.0;", " 1,\n1,\t5e-1, -0 "])
def test_strengths_may_be_separated_in_every_usual_way(text: str) -> None:
    assert parse_strengths(text) == [1, 1, 0.5, 0]


@pytest.mark.parametrize("text", ["", " , ", "1, x", "1, nan", "inf", "1, -10.5", "1, 0,5x"])
def test_an_invalid_list_of_strengths_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(repr(text))}.* -10 to 10"):
        parse_strengths(text)


def test_the_last_strength_is_repeated() -> None:
    assert [strength_at([1.0, 0.5], step) for step in range(4)] == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("steps", [1, 4, 28, 1000])
@pytest.mark.parametrize("shift", [1.0, 5.0, 17.0])
def test_each_level_of_a_schedule_is_one_step(steps: int, shift: float) -> None:
    sigmas = few_step_sigmas(steps, shift).tolist()
    assert [step_at(sigma, sigmas, steps=4) for sigma in sigmas[:-1]] == list(range(steps))


def test_levels_between_two_steps_belong_to_the_nearer() -> None:
    sigmas = [1.0, 0.8, 0.4, 0.0]
    assert [step_at(sigma, sigmas, 3) for sigma in (0.95, 0.85, 0.61, 0.59, 0.01)] == [0, 1, 1, 2, 2]


def test_steps_of_a_partial_schedule_are_known_only_at_its_start_and_end() -> None:
    sigmas = few_step_sigmas(8, 5.0).tolist()
    assert [step_at(sigma, sigmas[:4], 8) for sigma in sigmas[:3]] == [0, 1, 2]
    assert [step_at(sigma, sigmas[5:], 8) for sigma in sigmas[5:8]] == [5, 6, 7]
    assert step_at(sigmas[5], sigmas[5:], 2) == 0
    assert step_at(sigmas[3], sigmas[2:6], 8) is None

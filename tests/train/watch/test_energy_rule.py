"""The guard's rule for the validation's energy score, on measured runs of the pocket model."""

import json
import math

import pytest

from train.config.run import GuardConfig
from train.watch.energy_rule import EnergyRule
from train.watch.guard import Guard

# (update, energy score minus that of the teacher at 4 steps, its error). Batches of 4 clips: update 240 is a ruin.
OSCILLATING = [(80, 0.47, 0.45), (160, -0.26, 0.32), (240, 2.98, 0.58), (320, 0.31, 0.41)]
# Batches of 32 clips: steadily better.
STEADY = [(20, -0.20, 0.25), (40, -0.31, 0.29), (60, -0.37, 0.34)]


def first_act(scores: list[tuple[int, float, float]], settings: GuardConfig | None = None) -> int | None:
    rule = EnergyRule(settings or GuardConfig())
    return next((update for update, *score in scores if rule.observe(update, *score)[1]), None)


def test_the_ruin_is_found_when_it_is_measured() -> None:
    assert first_act(OSCILLATING) == 240


def test_a_run_that_improves_is_left_alone() -> None:
    assert first_act(STEADY) is None
    assert first_act(OSCILLATING[:2]) is None


def test_a_slow_rise_counts_at_the_second_validation() -> None:
    """0.9 above the best is 2.7 standard errors of the difference: more than `energy_rise`, less than `energy_jump`."""
    scores = [(10, 0.0, 0.2), (20, -0.5, 0.2), (30, 0.4, 0.27), (40, 0.4, 0.27)]
    assert first_act(scores) == 40
    assert first_act([*scores[:3], (40, -0.4, 0.2), (50, 0.4, 0.27)]) is None
    assert first_act(scores, GuardConfig(energy_rise=3)) is None
    assert first_act(scores, GuardConfig(energy_jump=2.5)) == 30


def test_a_certain_but_tiny_rise_is_no_collapse() -> None:
    """Early in a run all samples are nearly those of the start, so differences have tiny errors."""
    tiny = [(0, 0.0, 0.0), (10, 0.02, 0.001), (20, 0.025, 0.001)]
    assert first_act(tiny) is None
    assert first_act([(update, 2 * rise, error) for update, rise, error in tiny]) == 10
    assert first_act(tiny, GuardConfig(energy_margin=0)) == 10


def test_findings_name_the_setting_and_the_update() -> None:
    rule = EnergyRule(GuardConfig())
    for update, *score in OSCILLATING[:2]:
        assert rule.observe(update, *score) == ((), False)
    ((finding,), act) = rule.observe(*OSCILLATING[2])
    assert act
    assert "update 240" in finding
    assert "guard.energy_jump" in finding


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_acts_at_once(value: float) -> None:
    rule = EnergyRule(GuardConfig())
    assert rule.observe(20, value, 0.1)[1]
    assert rule.risen


def test_checkpoints_after_the_last_good_score_are_not_trusted() -> None:
    guard = Guard(GuardConfig())
    assert guard.trusted_until is None
    assert guard.healthy
    for update, *score in OSCILLATING[:2]:
        guard.judge_energy(update, *score)
    assert guard.trusted_until is None
    assert guard.judge_energy(*OSCILLATING[2]).act
    assert not guard.healthy
    assert guard.trusted_until == 160
    guard.judge_energy(*OSCILLATING[3])
    assert guard.healthy


def test_a_resumed_rule_decides_equally_and_old_runs_have_noted_no_scores() -> None:
    scores = [*OSCILLATING[:2], (200, 0.6, 0.2), (240, 0.7, 0.2)]
    whole = Guard(GuardConfig())
    verdicts = [whole.judge_energy(*score) for score in scores]
    assert verdicts[-1].act
    for cut in range(len(scores)):
        before, after = Guard(GuardConfig()), Guard(GuardConfig())
        for score in scores[:cut]:
            before.judge_energy(*score)
        after.restore(json.loads(json.dumps(before.notes())))
        assert [after.judge_energy(*score) for score in scores[cut:]] == verdicts[cut:]
    notes = whole.notes()
    del notes["energy"]
    whole.restore(notes)
    assert whole.healthy
    assert whole.trusted_until is None

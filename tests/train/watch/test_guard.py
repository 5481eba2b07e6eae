"""The guard on metrics of healthy runs, and of runs that fail in each known way."""

import json
import math

import numpy as np
import pytest

from tests.train.watch.test_energy_rule import OSCILLATING
from train.config.run import GuardConfig
from train.watch.guard import Guard, Verdict, judge

# Medians and relative spreads of a healthy run of the pocket model (80 updates).
HEALTHY = {
    "fake/loss": (0.2, 0.45),
    "generator/relative_distance": (0.19, 0.3),
    "generator/motion": (0.34, 0.15),
    "generator/deviation": (0.98, 0.07),
    "generator/saturation": (0.002, 0.5),
}


def run(rounds: int, change: dict[str, tuple[int, float]] | None = None, seed: int = 0) -> list[dict[str, float]]:
    """Metrics of a run. `change` maps a metric to (start, factor): from round `start` it drifts for 30 rounds."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(rounds):
        row = {}
        for name, (centre, spread) in HEALTHY.items():
            start, factor = (change or {}).get(name, (rounds, 1.0))
            drift = factor ** min(max(number - start, 0) / 30, 1.0)
            row[name] = centre * drift * math.exp(spread * generator.standard_normal())
        rows.append(row)
    return rows


def first_act(rows: list[dict[str, float]], settings: GuardConfig | None = None) -> tuple[int, Verdict] | None:
    guard = Guard(settings or GuardConfig())
    for number, row in enumerate(rows):
        verdict = guard.observe(row)
        if verdict.act:
            return number, verdict
    return None


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_is_left_alone(seed: int) -> None:
    guard = Guard(GuardConfig())
    assert not any(guard.observe(row).findings for row in run(600, seed=seed))
    assert guard.healthy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("metric", "factor", "meaning", "field"),
    [
        ("generator/motion", 0.1, "stop moving", "motion_floor"),
        ("generator/deviation", 2.5, "saturate", "deviation_ceiling"),
        ("generator/deviation", 0.3, "wash out", "deviation_floor"),
        ("generator/saturation", 100.0, "latents leave", "saturation_ceiling"),
        ("generator/relative_distance", 20.0, "drift apart", "relative_distance_ceiling"),
        ("fake/loss", 10.0, "fake score", "fake_loss_ceiling"),
    ],
)
def test_a_failing_run_is_ended_for_its_reason(metric: str, factor: float, meaning: str, field: str, seed: int) -> None:
    settings = GuardConfig()
    found = first_act(run(400, {metric: (200, factor)}, seed), settings)
    assert found is not None
    number, verdict = found
    # Not before the drift starts, and at most a drift (30 rounds), a window and the patience later.
    assert 200 < number < 200 + 30 + settings.window + settings.patience
    assert len(verdict.findings) == 1
    assert meaning in verdict.findings[0]
    assert f"guard.{field}" in verdict.findings[0]


def growing(number: int, noise: np.random.Generator) -> dict[str, float]:
    """A round in which only the branch has changed: |r - f| grows from zero as a real one that started at zero.

    It was .0122, .0284 and .0371 after 100, 200 and 300 updates, with a generator that stood still. The real score's
    error on the samples is 0.24.
    """
    distance = np.interp(number, [0, 100, 200, 300], [0.0, 0.0122, 0.0284, 0.0371]) * math.exp(0.35 * noise.normal())
    grown = {"generator/real_fake_distance": distance, "generator/matching_gradient": distance / 0.24}
    return grown | {"generator/relative_distance": distance / 0.24}


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_branch_that_grows_from_zero_is_left_alone(seed: int) -> None:
    noise = np.random.default_rng(seed)
    rows = [row | growing(number, noise) for number, row in enumerate(run(300, seed=seed))]
    distances = [row["generator/real_fake_distance"] for row in rows]
    baseline, last = np.median(distances[10:30]), np.median(distances[-20:])
    assert last > 8 * baseline  # any limit relative to the baseline would have ended the run
    guard = Guard(GuardConfig())
    assert not any(guard.observe(row).findings for row in rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_real_collapse_is_told_from_it(seed: int) -> None:
    """A run whose losses stay in range while its samples are ruined: the energy score of the validation shows it.

    Its energy scores are those of `test_energy_rule.OSCILLATING`. Its fake loss rises to 1.98 times its start.
    """
    noise, guard = np.random.default_rng(seed), Guard(GuardConfig())
    rows = run(320, {"fake/loss": (200, 1.98)}, seed)
    acted = []
    for number, row in enumerate(rows, 1):
        acted += [number] * guard.observe(row | growing(number, noise)).act
        if (score := {update: rest for update, *rest in OSCILLATING}.get(number)) is not None:
            acted += [number] * guard.judge_energy(number, *score).act
    assert acted == [240]


def test_a_warm_up_is_checked_for_nan_only() -> None:
    guard = Guard(GuardConfig(warmup=0, window=1, patience=1))
    for value in (1.0, 100.0):
        assert not guard.observe_warmup({"fake/loss": value}).findings
    assert guard.observe_warmup({"fake/loss": math.nan}).act
    assert guard.broken
    # Its rounds are not in the baseline.
    assert guard.notes()["rounds"] == 0


def test_dominating_guidance_is_found() -> None:
    rows = [row | {"generator/guidance_ratio": 3.0 if number < 100 else 50.0} for number, row in enumerate(run(200))]
    found = first_act(rows)
    assert found is not None
    assert "guidance_scale" in found[1].findings[0]


@pytest.mark.parametrize(("rounds", "acts"), [(6, False), (14, False), (30, True)])
def test_a_short_disturbance_does_not_end_a_run(rounds: int, acts: bool) -> None:
    """A few bad rounds do not change the medians. More rounds are reported; only lasting ones end the run."""
    rows = run(300)
    for row in rows[150 : 150 + rounds]:
        row["generator/motion"] *= 0.05
    guard = Guard(GuardConfig(window=20, patience=20))
    verdicts = [guard.observe(row) for row in rows]
    assert any(verdict.findings for verdict in verdicts) == (rounds > 10)
    assert any(verdict.act for verdict in verdicts) == acts
    assert guard.healthy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_values_act_at_once(value: float) -> None:
    guard = Guard(GuardConfig(warmup=100))
    assert not guard.observe(run(1)[0]).act
    verdict = guard.observe(run(1)[0] | {"fake/gradient_norm": value})
    assert verdict.act
    assert guard.broken
    assert verdict.findings == (f"fake/gradient_norm is {value}",)
    assert not guard.healthy
    guard.restore(guard.notes())
    assert guard.healthy


def test_a_resumed_guard_decides_equally() -> None:
    rows = run(400, {"generator/motion": (200, 0.1)})
    whole = Guard(GuardConfig())
    verdicts = [whole.observe(row) for row in rows]
    for cut in (5, 100, 215, 240):
        before, after = Guard(GuardConfig()), Guard(GuardConfig())
        for row in rows[:cut]:
            before.observe(row)
        after.restore(json.loads(json.dumps(before.notes())))
        assert [after.observe(row) for row in rows[cut:]] == verdicts[cut:]


def test_methods_without_a_quantity_are_checked_by_the_others() -> None:
    rows = [{"generator/loss": 1.0, "generator/deviation": 1.0 if n < 100 else 9.0} for n in range(200)]
    found = first_act(rows)
    assert found is not None
    assert "saturate" in found[1].findings[0]
    assert first_act([{"generator/loss": 1.0}] * 200) is None


def test_limits_are_multiples_of_the_baseline() -> None:
    settings = GuardConfig(motion_floor=0.5)
    assert not judge({"generator/motion": 0.51}, {"generator/motion": 1.0}, settings)
    assert judge({"generator/motion": 0.49}, {"generator/motion": 1.0}, settings)
    assert not judge({"generator/motion": 0.049}, {"generator/motion": 0.09}, settings)


def test_a_resumed_run_may_log_other_metrics_than_before() -> None:
    """Guidance is turned off, as the guard advises, and later a metric without a baseline appears."""
    guard, guided = Guard(GuardConfig(warmup=0, window=5, patience=3)), "generator/guidance_ratio"
    rows = run(40)
    for row in rows[:20]:
        verdict = guard.observe(row | {guided: 50.0})
    assert any("method.guidance_scale" in finding for finding in verdict.findings)
    resumed = Guard(guard.settings)
    resumed.restore(guard.notes())
    for row in rows[20:30]:
        verdict = resumed.observe(row)
        assert not verdict.findings
    assert "guard/guidance_ratio" not in resumed.ratios()
    for row in rows[30:]:
        assert not resumed.observe(row | {"generator/temporal_variance": 0.1}).findings

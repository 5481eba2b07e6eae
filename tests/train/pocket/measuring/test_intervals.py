"""Intervals over runs and clips: against the deviation that theory gives, and against the plain bootstrap."""

import pytest
import torch

from magicdistill_core.metrics.bootstrap import bootstrap
from train.pocket.measuring.intervals import crossed_bootstrap, jackknife


def test_one_run_is_the_bootstrap_over_clips() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    first, second = (torch.Generator().manual_seed(1) for _ in range(2))
    assert crossed_bootstrap(values[None], first) == bootstrap(values, second)


def test_the_width_is_that_of_runs_and_clips_together() -> None:
    """Values a_r + b_n have the variance s_a^2 / R + s_b^2 / N of their mean, with the unbiased s_a."""
    generator = torch.Generator().manual_seed(2)
    runs = 0.3 * torch.randn(8, 1, generator=generator, dtype=torch.float64)
    clips = torch.randn(1, 200, generator=generator, dtype=torch.float64)
    values = runs + clips
    found = crossed_bootstrap(values, generator)
    deviation = float(runs.var() / 8 + clips.var() / 200) ** 0.5
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_runs_that_differ_make_the_interval_wide() -> None:
    clips = torch.randn(3, 96, generator=torch.Generator().manual_seed(3))
    clips = clips - clips.mean(1, keepdim=True)
    equal, apart = (
        crossed_bootstrap(clips + spread * torch.tensor([[-1.0], [0.0], [1.0]]), torch.Generator().manual_seed(4))
        for spread in (0.0, 1.0)
    )
    assert apart.high - apart.low > 3 * (equal.high - equal.low)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of the values are not finite"):
        crossed_bootstrap(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), torch.Generator())


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def mean_without(left_out: torch.Tensor) -> float:
        kept = torch.ones(12, dtype=torch.bool)
        kept[left_out] = False
        return float(values[kept].mean())

    found = jackknife(mean_without, 12)
    error = 1.96 * float(values.std()) / 12**0.5
    assert (found.mean, found.high - found.mean) == pytest.approx((float(values.mean()), error))
    assert found.mean - found.low == pytest.approx(error)


def test_the_jackknife_leaves_out_every_clip_once() -> None:
    seen: list[int] = []

    def note(left_out: torch.Tensor) -> float:
        seen.extend(left_out.tolist())
        return 0.0

    jackknife(note, 40)
    assert sorted(seen) == list(range(40))

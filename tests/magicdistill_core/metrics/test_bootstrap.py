"""Bootstrap intervals: coverage of the true mean, pairing, and refusal of unusable values."""

import pytest
import torch

from magicdistill_core.metrics.bootstrap import bootstrap


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_interval_contains_the_true_mean_as_often_as_it_says() -> None:
    """Skewed values with mean 1: 150 intervals of 95 % and of 50 %, within 4 deviations of their count."""
    values = -torch.rand(150, 96, generator=generator(1)).log()
    for level in (0.95, 0.5):
        found = [bootstrap(row, generator(number), level) for number, row in enumerate(values)]
        covered = sum(interval.low <= 1 <= interval.high for interval in found) / len(found)
        # A percentile interval of 96 skewed values covers about one percent less.
        assert abs(covered - level) < 0.01 + 4 * (level * (1 - level) / len(found)) ** 0.5


def test_paired_differences_see_what_the_two_means_hide() -> None:
    """Two models differ by 0.1 on every clip, and clips differ by 10."""
    clips = 10 * torch.randn(96, generator=generator(2))
    noise = 0.05 * torch.randn(96, generator=generator(3))
    a, b = clips + 0.1 + noise, clips
    paired = bootstrap(a - b, generator())
    assert 0.05 < paired.low < 0.1 < paired.high < 0.15
    alone, other = bootstrap(a, generator()), bootstrap(b, generator())
    assert alone.low < other.mean < alone.high


def test_the_width_is_that_of_the_normal_interval_and_draws_repeat() -> None:
    values = torch.randn(2000, generator=generator(4))
    found = bootstrap(values, generator())
    assert found == bootstrap(values, generator())
    assert found.mean == pytest.approx(float(values.double().mean()))
    expected = 1.96 * float(values.std()) / 2000**0.5
    assert found.high - found.mean == pytest.approx(expected, rel=0.1)
    assert found.mean - found.low == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("values", [torch.zeros(1), torch.zeros(2, 2), torch.tensor([0.0, float("nan")])])
def test_unusable_values_are_refused(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least two finite values"):
        bootstrap(values, generator())
    with pytest.raises(ValueError, match="level"):
        bootstrap(torch.zeros(4), generator(), 95)

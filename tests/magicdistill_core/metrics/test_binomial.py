"""The exact interval of a proportion, against the quantiles of the beta distribution."""

import pytest
from scipy.stats import beta

from magicdistill_core.metrics.binomial import binomial_interval


@pytest.mark.parametrize(("hits", "trials"), [(0, 16), (1, 16), (8, 16), (13, 16), (16, 16), (0, 1), (60, 96)])
def test_the_ends_are_quantiles_of_the_beta_distribution(hits: int, trials: int) -> None:
    found = binomial_interval(hits, trials)
    low = 0.0 if hits == 0 else beta.ppf(0.025, hits, trials - hits + 1)
    high = 1.0 if hits == trials else beta.ppf(0.975, hits + 1, trials - hits)
    assert (found.mean, found.low, found.high) == pytest.approx((hits / trials, low, high), abs=1e-9)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="17 hits in 16 trials"):
        binomial_interval(17, 16)
    with pytest.raises(ValueError, match="at least one trial"):
        binomial_interval(0, 0)

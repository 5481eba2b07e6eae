"""The exact interval of a proportion."""

from collections.abc import Callable
from math import comb

from .bootstrap import Interval


def binomial_interval(hits: int, trials: int, level: float = 0.95) -> Interval:
    """Return the share of hits and its exact interval (Clopper and Pearson, 1934).

    The interval contains every probability at which so many hits, or so few, are not rarer than `(1 - level) / 2`. It
    contains the true probability at least as often as `level` says.

    Args:
        hits: number of hits.
        trials: number of independent trials.
        level: the probability that the interval contains the true probability.

    Raises:
        ValueError: if there is no trial, or there are more hits than trials.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"Found {hits} hits in {trials} trials. Expected at least one trial and at most one hit each.")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _where(lambda p: 1 - _at_most(hits - 1, trials, p) > tail)
    high = 1.0 if hits == trials else _where(lambda p: _at_most(hits, trials, p) < tail)
    return Interval(hits / trials, low, high)


def _at_most(hits: int, trials: int, p: float) -> float:
    """Return the probability of at most `hits` hits."""
    return sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits + 1))


def _where(turns_true: Callable[[float], bool]) -> float:
    """Return the probability from which on a condition is true, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if turns_true(middle) else (middle, high)
    return (low + high) / 2

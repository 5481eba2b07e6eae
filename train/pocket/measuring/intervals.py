"""Intervals over clips and training seeds together, and of a number that all clips make together."""

from collections.abc import Callable
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor

from magicdistill_core.metrics.bootstrap import Interval, bootstrap

_RESAMPLES = 4000
_GROUPS = 12


def crossed_bootstrap(values_RN: Tensor, generator: torch.Generator, level: float = 0.95) -> Interval:
    """Return the mean and its interval over training runs and clips, which are both resampled.

    All runs are measured on the same clips, so runs and clips are resampled independently of each other. A resample of
    R runs varies too little, by the factor (R - 1) / R of the variance. The deviations of the runs are scaled up by
    sqrt(R / (R - 1)) against this. With one run the interval covers clips only.

    Args:
        values_RN: one value per run and clip, `[R, N]`, N of at least 2.
        generator: a CPU generator for the resamples.
        level: the probability that the interval contains the true mean.

    Raises:
        ValueError: if there are fewer than two clips, or a value is not finite.
    """
    runs, clips = values_RN.shape
    if runs == 1 or clips < 2:
        return bootstrap(values_RN.flatten(), generator, level)
    if not values_RN.isfinite().all():
        raise ValueError(f"{int((~values_RN.isfinite()).sum())} of the values are not finite. Measure the cells again.")
    values = values_RN.double()
    wider = (runs / (runs - 1)) ** 0.5
    run_weights = (1 + wider * (_counts(runs, generator) - 1)) / runs
    clip_weights = _counts(clips, generator) / clips
    means = ((run_weights @ values) * clip_weights).sum(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(float(values.mean()), float(low), float(high))


def jackknife(statistic: Callable[[Tensor], float], clips: int) -> Interval:
    """Return a statistic of all clips with its 95 % interval, by leaving out one group of clips after another.

    A bootstrap does not fit a distance between distributions, because a clip that is drawn twice has a distance of 0
    from itself. With K groups and values v_k the variance is `(K - 1) / K sum (v_k - mean v)^2` (Efron and Stein,
    1981).

    Args:
        statistic: function of the numbers of the clips that are left out.
        clips: number of clips, at least 3.
    """
    groups = min(_GROUPS, clips)
    without = [statistic(torch.arange(group, clips, groups)) for group in range(groups)]
    middle = fmean(without)
    error = 1.96 * sqrt((groups - 1) / groups * sum((value - middle) ** 2 for value in without))
    value = statistic(torch.arange(0))
    return Interval(value, value - error, value + error)


def _counts(number: int, generator: torch.Generator) -> Tensor:
    """Return how often each of `number` items is in each resample, `[resamples, number]` in float64."""
    chosen = torch.randint(number, (_RESAMPLES, number), generator=generator)
    counts = torch.zeros(_RESAMPLES, number, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(counts))

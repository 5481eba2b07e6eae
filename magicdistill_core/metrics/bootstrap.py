"""Intervals of means by resampling (the percentile bootstrap)."""

from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: the mean of the values.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    mean: float
    low: float
    high: float


def bootstrap(values: Tensor, generator: torch.Generator, level: float = 0.95) -> Interval:
    """Return the mean of values and its interval: the quantiles of the means of 4000 resamples with replacement.

    The values must be independent, such as one value for each clip. For the difference of two models on the same clips,
    pass the differences `a - b`: what makes a clip hard for both models then cancels.

    Args:
        values: `[N]`, N of at least 2. With fewer than about 30 values the interval is too narrow.
        generator: a CPU generator for the resamples.
        level: the probability that the interval contains the true mean.

    Raises:
        ValueError: if there are fewer than two values, one is not finite, or `level` is not between 0 and 1.
    """
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all() or not 0 < level < 1:
        raise ValueError(
            f"A bootstrap needs at least two finite values [N] and a level between 0 and 1. Found values of shape "
            f"{list(values.shape)} ({int((~values.isfinite()).sum())} not finite) and the level {level}."
        )
    values = values.detach().double().cpu()
    chosen = torch.randint(len(values), (_RESAMPLES, len(values)), generator=generator)
    tail = (1 - level) / 2
    low, high = torch.quantile(values[chosen].mean(1), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(float(values.mean()), float(low), float(high))

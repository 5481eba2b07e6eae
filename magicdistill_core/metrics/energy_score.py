"""The energy score: how well samples of a model predict what really happened."""

from itertools import combinations

import torch
from torch import Tensor

# Numbers that are converted to float64 at a time.
_GROUP_NUMBERS = 2**24


def energy_scores(samples: Tensor, truths: Tensor) -> Tensor:
    """Return the energy score of each truth: `mean_s |x_s - y| - 0.5 mean_(s != s') |x_s - x_s'|`, lower is better.

    It is the energy score of Gneiting and Raftery (2007), with the sign turned and exponent 1, in its unbiased form:
    pairs of a sample with itself are left out. It is strictly proper. Its expectation over truths is lowest for samples
    of the distribution that the truths come from: samples far from the truth are bad, and so are samples that are all
    alike. Distances are Euclidean over all elements, divided by the square root of their number. They are therefore
    root mean squares, in the unit of the samples.

    Args:
        samples: `[N, S, ...]`, S samples for each truth, S of at least 2.
        truths: `[N, ...]` with the same trailing axes.

    Returns:
        `[N]` in float64, on the device of the samples.

    Raises:
        ValueError: if the shapes do not fit, or there are fewer than two samples for each truth.
    """
    if samples.ndim < 2 or samples[:, 0].shape != truths.shape or samples.shape[1] < 2:
        raise ValueError(
            f"Samples [N, S, ...] with S >= 2 and truths [N, ...] are needed. Found {list(samples.shape)} and "
            f"{list(truths.shape)}. Draw at least two samples for each truth, in the truth's shape."
        )
    # In groups of truths: samples of videos in float64 may not fit into memory together.
    group = max(1, _GROUP_NUMBERS // samples[0].numel())
    parts = zip(samples.split(group), truths.split(group), strict=True)
    return torch.cat([_scores(x.double().reshape(*x.shape[:2], -1), y.double().reshape(len(y), -1)) for x, y in parts])


def _scores(x_NSD: Tensor, y_ND: Tensor) -> Tensor:
    error = torch.stack([_distance(x, y_ND) for x in x_NSD.unbind(1)]).mean(0)
    spread = torch.stack([_distance(a, b) for a, b in combinations(x_NSD.unbind(1), 2)]).mean(0)
    return error - 0.5 * spread


def _distance(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return (a_ND - b_ND).square().mean(1).sqrt()

"""Distances between two sets of feature vectors."""

import torch
from torch import Tensor


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float64. Raise ValueError if the shapes do not fit or a set has fewer than two samples."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Two sets of feature vectors are needed, [N, D] and [M, D] with N, M >= 2. Found {list(x.shape)} and "
            f"{list(y.shape)}. Use more samples, or features of one length."
        )
    return x.double(), y.double()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance of two sets: `2 E|x - y| - E|x - x'| - E|y - y'|` (Szekely and Rizzo).

    Pairs of a sample with itself are left out. The estimate is unbiased. For two sets of the same distribution its mean
    is 0, so single values may be slightly negative.

    Args:
        x: feature vectors `[N, D]`, N of at least 2.
        y: feature vectors `[M, D]`, M of at least 2.

    Raises:
        ValueError: if the shapes do not fit or a set has fewer than two samples.
    """
    x, y = _checked(x, y)
    within = [torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance of Gaussians that are fitted to both sets, with means m and covariances C.

    It is `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`. It is FID only if the features are Inception's. It is
    biased upwards if the number of samples is small compared with the dimension D.

    Args:
        x: feature vectors `[N, D]`, N of at least 2.
        y: feature vectors `[M, D]`, M of at least 2.

    Raises:
        ValueError: if the shapes do not fit or a set has fewer than two samples.
    """
    x, y = _checked(x, y)
    cov_x, cov_y = torch.atleast_2d(torch.cov(x.T)), torch.atleast_2d(torch.cov(y.T))
    # tr (C_x C_y)^(1/2) is the sum of the square roots of the eigenvalues of C_x C_y. The symmetric matrix
    # C_x^(1/2) C_y C_x^(1/2) has the same eigenvalues.
    values, vectors = torch.linalg.eigh(cov_x)
    root_x = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_x @ cov_y @ root_x).clamp_min(0).sqrt().sum()
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return float(mean + cov_x.trace() + cov_y.trace() - 2 * cross)

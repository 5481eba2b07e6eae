"""The Frechet distance of two sets of feature vectors: the formula of FID and FVD, for features of any network."""

import torch
from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared Frechet distance of the normal distributions that fit two sets of feature vectors.

    `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))` with unbiased covariances (Heusel et al., 2017, equation 6).
    With Inception's features it is FID, with I3D's it is FVD. Its value depends on N and M: few vectors make it too
    large.

    The trace of the root is the sum of the singular values of `X Y^T / sqrt((N - 1) (M - 1))`, where X and Y are the
    centred features. This needs no root of a matrix, and no covariance where there are fewer vectors than features.

    Args:
        x: feature vectors `[N, D]`, N of at least 2.
        y: feature vectors `[M, D]`, M of at least 2.

    Raises:
        ValueError: if the shapes do not fit, a set has fewer than two vectors, or a value is not finite.
    """
    _check(x, y)
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    root = torch.linalg.svdvals(_shorter(x) @ _shorter(y).T).sum()
    return float((mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * root)


def halves_distance(x: Tensor, generator: torch.Generator) -> float:
    """Return the Frechet distance of two random halves of one set: what equal distributions have at N / 2 vectors.

    Args:
        x: feature vectors `[N, D]`, N of at least 4.
        generator: a CPU generator for the halves.

    Raises:
        ValueError: see `frechet_distance`.
    """
    order = torch.randperm(len(x), generator=generator).to(x.device)
    half = len(x) // 2
    return frechet_distance(x[order[:half]], x[order[half:]])


def _shorter(x_ND: Tensor) -> Tensor:
    """Return a matrix with at most D rows and the same product `X^T X`: singular values of products stay the same."""
    return torch.linalg.qr(x_ND, mode="r").R if len(x_ND) > x_ND.shape[1] else x_ND


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Two sets of feature vectors are needed, [N, D] and [M, D] with N, M >= 2. Found {list(x.shape)} and "
            f"{list(y.shape)}. Use more samples, or features of one length."
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("A feature is not finite. Look for the damaged video, or for a network in half precision.")

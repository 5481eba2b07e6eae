"""Distances against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import energy_distance as scipy_energy

from magicdistill_core.metrics.distances import energy_distance, frechet_distance


def draw(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_equals_the_matrix_square_root() -> None:
    x, y = draw(200, 5, 0), draw(150, 5, 1, 0.5, 2.0) @ draw(5, 5, 2)
    cx, cy = np.cov(x.numpy().T), np.cov(y.numpy().T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_of_shifted_and_equal_sets() -> None:
    x = draw(100, 4, 3)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(16, rel=1e-9)


def test_energy_equals_scipy_up_to_the_diagonal() -> None:
    x, y = draw(300, 1, 4), draw(200, 1, 5, 1.0)
    # scipy returns the square root of the biased estimate, which includes the pairs of a sample with itself.
    pairs = [float(torch.cdist(s, s).sum()) / len(s) for s in (x, y)]
    correction = sum(p / (len(s) - 1) - p / len(s) for p, s in zip(pairs, (x, y), strict=True))
    biased = energy_distance(x, y) + correction
    assert biased == pytest.approx(scipy_energy(x[:, 0].numpy(), y[:, 0].numpy()) ** 2, rel=1e-9)


def test_energy_tells_equal_from_different() -> None:
    assert abs(energy_distance(draw(500, 8, 6), draw(500, 8, 7))) < 0.02
    assert energy_distance(draw(500, 8, 6), draw(500, 8, 7, std=0.5)) > 0.2


@pytest.mark.parametrize("distance", [energy_distance, frechet_distance])
def test_shapes_that_do_not_fit_are_refused(distance) -> None:
    with pytest.raises(ValueError, match="feature vectors"):
        distance(draw(10, 3, 8), draw(10, 4, 9))
    with pytest.raises(ValueError, match="feature vectors"):
        distance(draw(1, 3, 8), draw(10, 3, 9))

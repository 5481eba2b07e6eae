"""The energy distance against scipy."""

import pytest
import torch
from scipy.stats import energy_distance as scipy_energy

from magicdistill_core.metrics.distances import energy_distance


def draw(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="feature vectors"):
        energy_distance(draw(10, 3, 8), draw(10, 4, 9))
    with pytest.raises(ValueError, match="feature vectors"):
        energy_distance(draw(1, 3, 8), draw(10, 3, 9))

"""Gaussian blur: the moments of its kernel, and pictures that it leaves as they are."""

import pytest
import torch

from train.pocket.measuring.blur import blur


@pytest.mark.parametrize("sigma", [0.8, 1.0, 2.5])
def test_the_kernel_has_the_variance_of_a_gaussian(sigma: float) -> None:
    point = torch.zeros(41, 41, dtype=torch.float64)
    point[20, 20] = 1
    spread = blur(point, sigma)
    offsets = torch.arange(41, dtype=torch.float64) - 20
    assert spread.sum().item() == pytest.approx(1)
    for axis in (0, 1):
        variance = (spread.sum(dim=axis) * offsets.square()).sum().item()
        assert variance == pytest.approx(sigma**2, rel=0.08)


def test_flat_pictures_and_zero_blur_change_nothing() -> None:
    flat = torch.full((2, 3, 12, 12), 0.3)
    torch.testing.assert_close(blur(flat, 1.5), flat)
    noise = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert blur(noise, 0) is noise

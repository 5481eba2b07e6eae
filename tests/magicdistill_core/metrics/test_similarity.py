import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from magicdistill_core.metrics.similarity import psnr, ssim


def noisy(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 24, 31, generator=generator)
    return x, (x + strength * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x, x + 0.1).item() == pytest.approx(20)
    assert psnr(x, x + 0.01).item() == pytest.approx(40, abs=1e-4)
    assert psnr(x, x).item() == 100


def test_ssim_equals_its_definition() -> None:
    place = np.arange(11) - 5
    line = np.exp(-(place**2) / (2 * 1.5**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    x, y = noisy(0.2)

    def mean(plane: np.ndarray) -> np.ndarray:
        return correlate(plane, kernel)[5:-5, 5:-5]

    expected = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        maps = []
        for p, q in zip(a, b, strict=True):
            m, n = mean(p), mean(q)
            numerator = (2 * m * n + 1e-4) * (2 * (mean(p * q) - m * n) + 9e-4)
            denominator = (m**2 + n**2 + 1e-4) * (mean(p * p) - m**2 + mean(q * q) - n**2 + 9e-4)
            maps.append(numerator / denominator)
        expected.append(np.mean(maps))
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))

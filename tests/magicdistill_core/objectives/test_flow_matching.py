"""The flow-matching loss compared with the closed form for Gaussians, and the distribution of its noise levels."""

import math

import torch
from torch import Tensor

from magicdistill_core.flow import add_noise, expand_sigma, shift_sigma, velocity_to_x0
from magicdistill_core.objectives.flow_matching import flow_matching_loss, noise_reference, x0_weight
from magicdistill_core.objectives.noise_levels import logit_normal_sigma


def gaussian_slope(sigma: Tensor, std: float) -> Tensor:
    """The best velocity for z ~ N(0, std^2) is this times x_sigma: Cov(eps - z, x_s) / Var(x_s)."""
    return (sigma - (1 - sigma) * std**2) / ((1 - sigma) ** 2 * std**2 + sigma**2)


def test_the_optimum_for_a_gaussian_is_its_velocity() -> None:
    """The loss's minimum is at the closed-form slope, and its value there is the remaining variance."""
    generator = torch.Generator().manual_seed(0)
    std, sigma = 0.5, 0.7
    z = std * torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    levels = torch.full((len(z),), sigma, dtype=torch.float64)
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    # The loss is quadratic in the slope, so one Newton step reaches the minimum from any start.
    loss = flow_matching_loss(lambda x, s: slope * x, z, eps, levels)
    (first,) = torch.autograd.grad(loss, slope, create_graph=True)
    (second,) = torch.autograd.grad(first, slope)
    best = float(-(first / second).detach())
    expected = float(gaussian_slope(torch.tensor(sigma, dtype=torch.float64), std))
    assert abs(best - expected) < 5e-3
    variance = 1 + std**2 - (sigma - (1 - sigma) * std**2) ** 2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
    least = float(flow_matching_loss(lambda x, s: expected * x, z, eps, levels))
    assert abs(least / variance - 1) < 1e-2


def test_weights_make_a_weighted_mean_and_the_data_get_no_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    z, eps = (torch.randn(2, 3, 2, 2, 2, generator=generator) for _ in range(2))
    z.requires_grad_()
    sigma = torch.tensor([0.3, 0.8])
    slope = torch.tensor(0.4, requires_grad=True)
    weight = torch.tensor([0.5, 2.0, 0.5]).view(3, 1, 1, 1)
    loss = flow_matching_loss(lambda x, s: slope * x, z, eps, sigma, weight)
    error = 0.4 * add_noise(z, eps, sigma) - (eps - z)
    torch.testing.assert_close(loss, sum(w * error[:, c].square().mean() for c, w in enumerate((0.5, 2.0, 0.5))) / 3)
    loss.backward()
    assert z.grad is None
    assert slope.grad is not None


def test_the_x0_weight_makes_the_error_of_the_clean_estimate() -> None:
    """`sigma^2 |v - u|^2 = |x0 - z|^2` (M141), also together with weights per channel."""
    generator = torch.Generator().manual_seed(4)
    z, eps = (torch.randn(3, 2, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    x = add_noise(z, eps, sigma)
    x0 = velocity_to_x0(x, torch.tanh(x), sigma)
    channels = torch.tensor([0.25, 1.75], dtype=torch.float64).view(2, 1, 1, 1)
    for weight in (torch.ones_like(channels), channels):
        loss = flow_matching_loss(lambda x, s: torch.tanh(x), z, eps, sigma, x0_weight(sigma, z) * weight)
        torch.testing.assert_close(loss, (weight * (x0 - z).square()).mean())


def test_half_precision_is_summed_in_float32() -> None:
    z, eps = torch.zeros(1, 1, 1, 64, 64), torch.zeros(1, 1, 1, 64, 64)
    loss = flow_matching_loss(lambda x, s: torch.full_like(x, 0.1, dtype=torch.bfloat16), z, eps, torch.ones(1))
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(torch.tensor(0.1, dtype=torch.bfloat16)) ** 2) < 1e-7


def test_logit_normal_levels_have_the_logits_of_a_normal() -> None:
    """Shift s adds log s to the logits, so they are N(mean + log s, std^2)."""
    sigma = logit_normal_sigma(200_000, 5.0, torch.Generator().manual_seed(2), mean=-0.3, std=0.8)
    logits = torch.logit(sigma.double())
    assert abs(float(logits.mean()) - (-0.3 + math.log(5))) < 1e-2
    assert abs(float(logits.std()) - 0.8) < 1e-2
    again = logit_normal_sigma(3, 1.0, torch.Generator().manual_seed(5))
    normal = torch.randn(3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(again, shift_sigma(normal.sigmoid(), 1.0))


def test_reference_noise_has_the_given_standard_deviation() -> None:
    image = torch.ones(2, 16, 1, 30, 30)
    eps = torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    log_std = torch.tensor([-3.0, -1.0])
    noisy = noise_reference(image, log_std, eps)
    torch.testing.assert_close(noisy, image + expand_sigma(log_std.exp(), image) * eps)
    for sample, expected in zip(noisy, log_std.exp(), strict=True):
        assert abs(float(sample.std() / expected) - 1) < 0.05

"""Identities of distribution matching, compared with closed forms and plain formulas."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.flow import add_noise, velocity_to_x0
from magicdistill_core.objectives.distribution_matching import (
    Guidance,
    fake_loss,
    generator_loss,
    matching_gradient,
    relative_distance,
    surrogate_loss,
)

SHAPE = (3, 4, 2, 2, 2)


def draw(*seeds: int) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]


def family(weight: float):
    """v_a = theta + a * zeta, as nonlinear functions of x and sigma."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1, 1)
        return torch.tanh(x) * (1 - s) + weight * torch.sin(3 * x + s)

    return velocity


SIGMA = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("normalize", [True, False])
def test_equal_weights_give_no_gradient(normalize: bool) -> None:
    x_hat, eps = draw(0, 1)
    x_hat.requires_grad_()
    result = generator_loss(x_hat, eps, SIGMA, family(0.7), family(0.7), normalize=normalize)
    result.loss.backward()
    assert torch.equal(x_hat.grad, torch.zeros_like(x_hat))


def test_zero_weak_weight_is_vanilla_dmd() -> None:
    """At a_weak = 0 the real score is the teacher, and g equals DMD2's x0 form, written out from its paper."""
    x_hat, eps = draw(2, 3)
    x_hat.requires_grad_()
    generator_loss(x_hat, eps, SIGMA, family(0.0), family(1.0), normalize=True).loss.backward()
    with torch.no_grad():
        x_s = add_noise(x_hat, eps, SIGMA)
        x0_real = velocity_to_x0(x_s, torch.tanh(x_s) * (1 - SIGMA.reshape(-1, 1, 1, 1, 1)), SIGMA)
        x0_fake = velocity_to_x0(x_s, family(1.0)(x_s, SIGMA), SIGMA)
        p_real, p_fake = x_hat - x0_real, x_hat - x0_fake
        expected = (p_real - p_fake) / p_real.abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    # The loss is computed in float32.
    torch.testing.assert_close(x_hat.grad, expected / x_hat.numel(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
def test_velocity_and_x0_forms_agree(normalize: bool) -> None:
    x_hat, eps, real, fake = draw(4, 5, 6, 7)
    x_s = add_noise(x_hat, eps, SIGMA)
    x0_real, x0_fake = velocity_to_x0(x_s, real, SIGMA), velocity_to_x0(x_s, fake, SIGMA)
    g = x0_fake - x0_real
    if normalize:
        g = g / (x_hat - x0_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(matching_gradient(x_hat, eps, SIGMA, real, fake, normalize=normalize), g)


def test_normalizer_has_a_floor() -> None:
    x_hat, eps = draw(8, 9)
    g = matching_gradient(x_hat, eps, SIGMA, eps - x_hat, eps - x_hat + 1e-6, normalize=True)
    torch.testing.assert_close(g, torch.full_like(g, -0.1))


def test_surrogate_has_the_given_gradient() -> None:
    x, g = (tensor.float() for tensor in draw(10, 11))
    x.requires_grad_()
    surrogate_loss(x, g).backward()
    torch.testing.assert_close(x.grad, g / x.numel(), rtol=1e-4, atol=1e-8)


def gaussian_velocity(mean: float, std: float):
    """The exact marginal velocity E[eps - z | x_sigma] of z ~ N(mean, std^2)."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        variance = (1 - s) ** 2 * std**2 + s**2
        residual = x - (1 - s) * mean
        return s / variance * residual - (mean + (1 - s) * std**2 / variance * residual)

    return velocity


@pytest.mark.parametrize("sigma", [0.2, 0.6, 0.95])
def test_gaussians_give_the_reverse_kl_gradient(sigma: float) -> None:
    """For teacher N(m, s^2) and generator N(a, b^2), the mean of g is the closed-form gradient of the KL by a.

    With p_sigma = N((1-t) a, (1-t)^2 b^2 + t^2) and q_sigma of the same form, dKL/da = (1-t)^2 (a - m) / var_q. Score
    and velocity differ by the factor -sigma / (1 - sigma), so E[g] = sigma^2 / (1 - sigma)^2 * dKL/da.
    """
    mean_q, std_q, mean_p, std_p = 0.5, 0.8, -0.7, 1.3
    generator = torch.Generator().manual_seed(0)
    z = mean_p + std_p * torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    t = torch.full((len(z),), sigma, dtype=torch.float64)
    x_s = add_noise(z, eps, t)
    real, fake = gaussian_velocity(mean_q, std_q)(x_s, t), gaussian_velocity(mean_p, std_p)(x_s, t)
    g = matching_gradient(z, eps, t, real, fake, normalize=False).mean()
    a = torch.tensor(mean_p, dtype=torch.float64, requires_grad=True)
    var_p, var_q = (((1 - sigma) * s) ** 2 + sigma**2 for s in (std_p, std_q))
    kl = 0.5 * (torch.log(torch.tensor(var_q / var_p)) + (var_p + ((1 - sigma) * (a - mean_q)) ** 2) / var_q - 1)
    kl.backward()
    expected = sigma**2 / (1 - sigma) ** 2 * a.grad
    torch.testing.assert_close(g, expected, rtol=2e-2, atol=1e-3)


def test_the_relative_distance_is_the_share_of_the_error_that_the_fake_score_removes() -> None:
    """With the exact fake score of Gaussian samples, `E (r - u)^2 = E (r - f)^2 + E (f - u)^2`; so it is at most 1."""
    generator, std, sigma = torch.Generator().manual_seed(1), 0.5, 0.6
    z, eps = (torch.randn(1, 400_000, generator=generator, dtype=torch.float64) for _ in range(2))
    z = std * z
    x_s = (1 - sigma) * z + sigma * eps
    slope = (sigma - (1 - sigma) * std**2) / ((1 - sigma) ** 2 * std**2 + sigma**2)
    fake = slope * x_s
    removed = {}
    for name, real in (("near", 0.9 * fake), ("far", 3 * x_s), ("equal", fake)):
        removed[name] = float(relative_distance(z, eps, real, fake))
        left = (fake - (eps - z)).square().mean() / (real - (eps - z)).square().mean()
        assert abs(removed[name] ** 2 + float(left) - 1) < 1e-2
    assert removed["equal"] == 0 < removed["near"] < removed["far"] < 1
    # A fake score that knows nothing exceeds 1: it is worse than the real score on the generator's own samples.
    assert relative_distance(z, eps, fake, -3 * fake) > 1


def test_guidance_moves_the_real_score_only() -> None:
    x_hat, eps = draw(12, 13)
    none = family(0.2)
    plain = generator_loss(x_hat, eps, SIGMA, family(0.5), family(1.0), normalize=False)
    one = generator_loss(x_hat, eps, SIGMA, family(0.5), family(1.0), normalize=False, guidance=Guidance(1.0, none))
    torch.testing.assert_close(one.loss, plain.loss)
    # In this family, v(none) + w (v(c) - v(none)) is the velocity with weight 0.2 + w * 0.3.
    guided = generator_loss(x_hat, eps, SIGMA, family(0.5), family(1.0), normalize=False, guidance=Guidance(3.0, none))
    member = generator_loss(x_hat, eps, SIGMA, family(0.2 + 3 * 0.3), family(1.0), normalize=False)
    torch.testing.assert_close(guided.loss, member.loss)
    # Guidance adds 2 * 0.3 of the branch; real and fake differ by 0.5 of it.
    torch.testing.assert_close(guided.guidance_ratio, torch.tensor(0.6 / 0.5, dtype=torch.float64))
    torch.testing.assert_close(guided.real_fake_distance, plain.real_fake_distance)
    assert plain.guidance_ratio == 0


def test_scores_carry_no_gradient() -> None:
    x_hat, eps = draw(14, 15)
    x_hat.requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    result = generator_loss(x_hat, eps, SIGMA, lambda x, s: 0.25 * weight * x, lambda x, s: weight * x, normalize=True)
    result.loss.backward()
    assert weight.grad is None
    assert x_hat.grad is not None


def test_fake_loss_is_minimal_at_the_exact_velocity() -> None:
    """For Gaussian samples the loss has its minimum at the closed-form velocity; x_hat gets no gradient."""
    generator = torch.Generator().manual_seed(3)
    x_hat = (2 + 0.5 * torch.randn(200_000, 1, generator=generator)).requires_grad_()
    eps, level = torch.randn(200_000, 1, generator=generator), torch.rand(200_000, generator=generator)
    exact = gaussian_velocity(2.0, 0.5)
    best = fake_loss(x_hat, eps, level, exact)
    for change in (0.05, -0.05):
        scaled = fake_loss(x_hat, eps, level, lambda x, s, c=change: (1 + c) * exact(x, s))
        shifted = fake_loss(x_hat, eps, level, lambda x, s, c=change: exact(x, s) + c)
        assert min(scaled, shifted) > best
    assert not best.requires_grad

"""The adversarial losses against plain formulas, and the generator's gradient against one joint backward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.flow import add_noise
from magicdistill_core.objectives.adversarial import adversarial_gradient, discriminator_loss

SHAPE = (3, 2, 2, 2, 2)
SIGMA = torch.tensor([0.1, 0.5, 0.9])


def draw(*seeds: int) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


class Discriminator(nn.Module):
    """A nonlinear discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(7)))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ self.weight * (1 - sigma) + sigma


def test_discriminator_loss_is_the_formula() -> None:
    z, x_hat, eps, noise = draw(0, 1, 2, 3)
    discriminator = Discriminator()
    result = discriminator_loss(discriminator, z, x_hat, eps, SIGMA, r1=3.0, perturbation=0.1 * noise)
    real, fake = (discriminator(add_noise(x, eps, SIGMA), SIGMA) for x in (z, x_hat))
    moved = discriminator(add_noise(z, eps, SIGMA) + 0.1 * noise, SIGMA)
    expected = (torch.log1p(torch.exp(-real)) + torch.log1p(torch.exp(fake)) + 3 * (real - moved) ** 2).mean()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.real_logit, real.mean())
    torch.testing.assert_close(result.fake_logit, fake.mean())


def test_the_sample_gets_no_gradient_and_without_r1_there_are_two_calls() -> None:
    z, x_hat, eps = draw(0, 1, 2)
    calls = []
    discriminator = Discriminator()

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(x)
        return discriminator(x, sigma)

    x_hat.requires_grad_()
    discriminator_loss(counted, z, x_hat, eps, SIGMA, r1=0.0, perturbation=None).loss.backward()
    assert x_hat.grad is None
    assert discriminator.weight.grad is not None
    assert len(calls) == 2


def test_the_penalty_approximates_the_squared_gradient() -> None:
    """For small noise `E (D(z) - D(z + s n))^2 = s^2 |grad D|^2`, at sigma 0."""
    (z,) = draw(0)
    z, discriminator, sigma = z[:1].requires_grad_(), Discriminator(), torch.zeros(1)
    (gradient,) = torch.autograd.grad(discriminator(z, sigma).sum(), z)
    noise = torch.randn(20_000, *SHAPE[1:], generator=torch.Generator().manual_seed(5))
    many = z.detach().expand(20_000, *SHAPE[1:])
    result = discriminator_loss(
        discriminator, many, many, torch.zeros_like(many), torch.zeros(20_000), r1=1.0, perturbation=1e-2 * noise
    )
    torch.testing.assert_close(result.penalty / 1e-4, gradient.square().sum(), rtol=3e-2, atol=0)


def test_the_perturbation_has_its_full_size_at_every_level() -> None:
    """A linear discriminator `w . x` moves by `w . n`, however much noise the data have."""
    z, x_hat, eps, noise = draw(0, 1, 2, 3)
    (weight,) = draw(4)

    def linear(x: Tensor, sigma: Tensor) -> Tensor:
        return (weight * x).flatten(1).sum(1)

    expected = (weight * noise).flatten(1).sum(1).square().mean()
    for level in (0.0, 0.5, 0.98):
        sigma = torch.full((len(z),), level)
        result = discriminator_loss(linear, z, x_hat, eps, sigma, r1=1.0, perturbation=noise)
        torch.testing.assert_close(result.penalty, expected)


def test_the_generators_gradient_equals_one_joint_backward() -> None:
    """The gradient at x_hat, carried on through the generator, equals one backward through both networks."""
    noise, eps, pull = draw(0, 1, 2)
    discriminator, generator = Discriminator(), nn.Linear(2, 2)

    def sample() -> Tensor:
        return generator(noise)

    x_hat = sample()
    joint = (pull * x_hat).mean() + 0.3 * F.softplus(-discriminator(add_noise(x_hat, eps, SIGMA), SIGMA)).mean()
    expected = torch.autograd.grad(joint, generator.weight)[0]

    x_hat = sample()
    loss, gradient = adversarial_gradient(discriminator, x_hat, eps, SIGMA)
    ((pull * x_hat).mean() + 0.3 * (x_hat * gradient).sum()).backward()
    torch.testing.assert_close(generator.weight.grad, expected)
    assert discriminator.weight.grad is None
    assert not loss.requires_grad
    assert not gradient.requires_grad


def test_the_gradient_is_computed_also_without_gradients_enabled() -> None:
    x_hat, eps = draw(0, 1)
    with torch.no_grad():
        _, gradient = adversarial_gradient(Discriminator(), x_hat, eps, SIGMA)
    assert gradient.abs().sum() > 0

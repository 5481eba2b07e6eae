"""Latent consistency distillation compared with ODEs that have closed-form solutions."""

import torch
from torch import Tensor

from magicdistill_core.flow import add_noise, few_step_sigmas
from magicdistill_core.objectives.consistency import consistency_loss, consistency_target, pseudo_huber

STD = 0.6  # of the Gaussian whose probability flow is dx/ds = slope(s) x, with x_s = x_1 * spread(s)


def spread(sigma: Tensor) -> Tensor:
    return ((1 - sigma) ** 2 * STD**2 + sigma**2).sqrt()


def gaussian_velocity(x: Tensor, sigma: Tensor) -> Tensor:
    s = sigma.reshape(-1, 1)
    return (s - (1 - s) * STD**2) / spread(s) ** 2 * x


def to_the_end(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the velocity whose clean estimate is the flow's true end `x * spread(0) / spread(s)`."""
    s = sigma.reshape(-1, 1)
    return (x - x * STD / spread(s)) / s.clamp_min(1e-12)


def draw(seed: int, rows: int = 512) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = STD * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return z, torch.randn(rows, 2, generator=generator, dtype=torch.float64)


def levels(steps: int, seed: int, rows: int = 512) -> tuple[Tensor, Tensor]:
    sigmas = few_step_sigmas(steps, 5.0).double()
    index = torch.randint(steps, (rows,), generator=torch.Generator().manual_seed(seed))
    return sigmas[index], sigmas[index + 1]


def test_target_on_a_linear_field_is_the_product_of_its_factors() -> None:
    """With v = l x the Euler step multiplies by 1 + (s' - s) l, and the jump to the end by 1 - s' l'."""
    z, eps = draw(0)
    sigma, sigma_next = levels(28, 1)
    x = add_noise(z, eps, sigma)
    found = consistency_target(x, sigma, sigma_next, lambda x, s: 0.7 * x, lambda x, s: -0.2 * x)
    factor = (1 + (sigma_next - sigma) * 0.7) * (1 + 0.2 * sigma_next)
    torch.testing.assert_close(found, factor[:, None] * x)


def test_the_true_solution_is_consistent_to_the_order_of_the_step() -> None:
    """The loss of the exact consistency function goes to zero as the teacher's steps get smaller."""
    z, eps = draw(2)
    losses = []
    for steps in (28, 56, 112):
        sigma, sigma_next = levels(steps, 3)
        # A wide Huber loss is quadratic: halving the step divides an error of second order by four and the loss by 16.
        losses.append(consistency_loss(to_the_end, gaussian_velocity, to_the_end, z, eps, sigma, sigma_next, 10.0))
    assert losses[0] < 1e-4
    assert losses[1] < losses[0] / 8
    assert losses[2] < losses[1] / 8


def test_consistency_finds_the_ends_of_the_flow_and_a_teachers_target_does_not() -> None:
    """From pure noise, a student with itself as the target reaches the flow's end; with the teacher, only the mean.

    The test computes the exact student `x0 = k x` level by level, from the clean end up to pure noise.
    """
    steps = 400
    sigmas = few_step_sigmas(steps, 5.0).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    factor = {float(sigmas[-1]): 1.0}
    for sigma, sigma_next in zip(sigmas[:-1].flip(0), sigmas[1:].flip(0), strict=True):
        known = factor[float(sigma_next)]

        def student(x: Tensor, s: Tensor, known: float = known) -> Tensor:
            return torch.zeros_like(x) if s == 0 else (1 - known) * x / s.reshape(-1, 1)

        goal = consistency_target(x, sigma[None], sigma_next[None], gaussian_velocity, student)
        factor[float(sigma)] = float(goal)
    assert abs(factor[1.0] / STD - 1) < 1e-2  # the flow maps noise to STD * noise
    fixed = consistency_target(x, sigmas[:1], sigmas[1:2], gaussian_velocity, gaussian_velocity)
    assert abs(float(fixed)) < 0.1 * STD  # the teacher's own clean estimate of pure noise is the mean, 0


def test_at_the_last_level_the_target_is_the_teachers_step() -> None:
    z, eps = draw(4)
    sigma, sigma_next = torch.full((512,), 0.2, dtype=torch.float64), torch.zeros(512, dtype=torch.float64)
    x = add_noise(z, eps, sigma)
    found = consistency_target(x, sigma, sigma_next, gaussian_velocity, lambda x, s: torch.full_like(x, 1e6))
    torch.testing.assert_close(found, x - 0.2 * gaussian_velocity(x, sigma))


def test_only_the_student_learns() -> None:
    z, eps = draw(5, 8)
    sigma, sigma_next = levels(28, 6, 8)
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    student, teacher, target = ((lambda x, s, w=w: w * x) for w in weights)
    consistency_loss(student, teacher, target, z, eps, sigma, sigma_next, 0.001).backward()
    assert weights[0].grad is not None
    assert weights[1].grad is None
    assert weights[2].grad is None


def test_pseudo_huber_is_square_when_small_and_absolute_when_large() -> None:
    small, large = torch.tensor([1e-3, -2e-3]), torch.tensor([50.0, -70.0])
    torch.testing.assert_close(pseudo_huber(small, 0.1), small.square().mean() / 0.2, rtol=1e-2, atol=0)
    torch.testing.assert_close(pseudo_huber(large, 0.1), large.abs().mean() - 0.1, rtol=1e-4, atol=0)
    assert pseudo_huber(torch.zeros(3), 0.1) == 0

"""The rivals on the ring: their identities, and closed forms where there are any."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.ring_rivals import PhasedStack, Rival, RivalStack, renoised, subinterval_loss
from benchmarks.ring_stack import Stack
from benchmarks.ring_world import Network, learn_teacher
from magicdistill_core.flow import add_noise
from magicdistill_core.objectives.distribution_matching import matching_gradient

BASE = Rival(batch=16, a_weak=0.0, student_rate=1e-3)


@pytest.fixture(scope="module")
def teacher() -> Network:
    return learn_teacher(updates=150, width=24, classes=4)


def trained(method: Rival, teacher: Network, rounds: int = 3, updates: int = 4) -> list[Tensor]:
    stack = RivalStack([method], [0], teacher, updates)
    for number in range(rounds):
        stack.round(number)
    return stack.student


def test_without_addition_it_is_distribution_matching(teacher: Network) -> None:
    stack = Stack([BASE], [0], teacher)
    for number in range(3):
        stack.round(number)
    torch.testing.assert_close(trained(BASE, teacher), stack.student)


@pytest.mark.parametrize("kind", ["guidance", "decoupled", "forced_score", "forced_x0", "first_step"])
def test_an_addition_changes_the_training_only_after_its_start(teacher: Network, kind: str) -> None:
    plain = trained(BASE, teacher)
    late = replace(BASE, kind=kind, strength=2.0, start=1.0)
    if kind != "first_step":  # the first step changes which rollouts are drawn
        torch.testing.assert_close(trained(late, teacher), plain)
    changed = trained(replace(late, start=0.0), teacher)
    assert max(float((a - b).abs().max()) for a, b in zip(changed, plain, strict=True)) > 1e-4


def test_guidance_with_scale_1_is_none(teacher: Network) -> None:
    torch.testing.assert_close(
        trained(replace(BASE, kind="guidance", strength=1.0), teacher, 1), trained(BASE, teacher, 1)
    )


def test_data_forcing_compares_scores_at_two_points(teacher: Network) -> None:
    """The gradient is proportional to the difference of the scores `-(x + (1 - s) v) / s` at data and samples."""
    stack = RivalStack([replace(BASE, kind="forced_score", strength=1.0)], [0], teacher, 4)
    labels = stack.labels()
    x_hat, eps, sigma, real = stack.noise(), stack.noise(), stack.level(), stack.score(0.0, labels)
    state = stack.generators[0].get_state()
    moved = stack._at_data(real, x_hat, labels, eps)(add_noise(x_hat, eps, sigma), sigma)
    stack.generators[0].set_state(state)
    z = stack.data_of(labels)

    def score(x: Tensor, v: Tensor) -> Tensor:
        return -(x + (1 - sigma[:, None]) * v) / sigma[:, None]

    x, y = add_noise(x_hat, eps, sigma), add_noise(z, eps, sigma)
    fake = stack.score(1.0, labels)(x, sigma)
    g = matching_gradient(x_hat, eps, sigma, moved, fake, normalize=False)
    expected = (score(x, fake) - score(y, real(y, sigma))) * sigma[:, None] ** 2 / (1 - sigma[:, None])
    torch.testing.assert_close(g, expected, atol=1e-5, rtol=1e-4)


def test_data_forcing_can_compare_x0_estimates(teacher: Network) -> None:
    stack = RivalStack([replace(BASE, kind="forced_x0", strength=1.0)], [0], teacher, 4)
    labels = stack.labels()
    x_hat, eps, sigma, real = stack.noise(), stack.noise(), stack.level(), stack.score(0.0, labels)
    state = stack.generators[0].get_state()
    x = add_noise(x_hat, eps, sigma)
    moved = stack._at_data(real, x_hat, labels, eps)(x, sigma)
    stack.generators[0].set_state(state)
    y = add_noise(stack.data_of(labels), eps, sigma)
    torch.testing.assert_close(x - sigma[:, None] * moved, y - sigma[:, None] * real(y, sigma), atol=1e-5, rtol=1e-4)


def test_the_first_step_follows_the_teacher(teacher: Network) -> None:
    """With a large weight, the first velocity of the generator comes nearer to the teacher's mean velocity."""
    labels, noise = torch.eye(4).repeat(16, 1), torch.randn(64, 2, generator=torch.Generator().manual_seed(5))
    method = replace(BASE, kind="first_step", strength=100.0, batch=64, student_rate=3e-3)
    stack = RivalStack([method], [0], teacher, 30)
    before = float(stack._first_step_loss(noise, labels).detach())
    for number in range(30):
        stack.round(number)
    assert float(stack._first_step_loss(noise, labels).detach()) < 0.5 * before


def test_the_guidance_of_the_decoupled_rival_stays_below_the_last_level(teacher: Network) -> None:
    stack = RivalStack([replace(BASE, kind="decoupled", strength=2.0, batch=512)], [0], teacher, 4)
    seen = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return x

    for index, level in enumerate((1.0, 0.9375, 0.8333, 0.625)):
        seen.clear()
        stack._guidance_gradient(stack.noise(), torch.tensor([index]), velocity, velocity)
        assert 0.9 * level < seen[0].max() <= level + 1e-3


def test_the_subinterval_loss_is_least_for_the_true_velocity() -> None:
    """For normally distributed data, the true velocity is linear in x and known. Other slopes have a larger loss."""
    generator, std, s = torch.Generator().manual_seed(0), 0.7, torch.tensor(0.4)
    z = std * torch.randn(200_000, 1, generator=generator)
    x_s = add_noise(z, torch.randn(z.shape, generator=generator), s)
    eps, t = torch.randn(z.shape, generator=generator), torch.full((len(z),), 0.8)
    variance = (0.2 * std) ** 2 + 0.8**2
    slope = (0.8 - 0.2 * std**2) / variance
    losses = [
        float(subinterval_loss(x_s, eps, s, t, lambda x, _, k=k: k * x)) for k in (slope - 0.05, slope, slope + 0.05)
    ]
    assert losses[1] < min(losses[0], losses[2])
    x_t, _, _ = renoised(x_s, eps, s, t)
    assert float(x_t.var()) == pytest.approx(variance, rel=0.01)


def test_phases_train_one_step_each(teacher: Network) -> None:
    stack = PhasedStack([BASE, BASE], [0, 1], teacher, updates=8)
    first = [tensor.clone() for tensor in stack.student]
    for number in range(3):
        stack.round(number)
    assert stack.phase == 1
    assert all((a != b).any() for a, b in zip(stack.experts[0][::2], first[::2], strict=True))
    experts = [tensor.clone() for tensor in stack.experts[0]]
    for number in range(3, 8):
        stack.round(number)
    assert stack.phase == 3
    torch.testing.assert_close(stack.experts[0], experts, atol=0, rtol=0)
    # In the last phase the samples are clean, and the loss of the fake score is flow matching's.
    x, eps, t = torch.randn(8, 2), torch.randn(8, 2), torch.linspace(0.4, 0.9, 8)
    loss = subinterval_loss(x, eps, torch.tensor(0.0), t, lambda x, _: torch.zeros_like(x))
    torch.testing.assert_close(loss, (eps - x).square().mean())

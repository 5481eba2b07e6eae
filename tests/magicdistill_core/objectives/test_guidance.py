"""Guidance and its distillation: the algebra of the target, and the target of each student call."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.flow import add_noise
from magicdistill_core.objectives.guidance import cfg_distillation_loss, guided_velocity


def draw(seed: int) -> Tensor:
    return torch.randn(3, 4, 2, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("w", [0.0, 0.5, 5.0])
def test_scale_is_one_more_than_the_papers_w(w: float) -> None:
    cond, none = draw(0), draw(1)
    expected = (1 + w) * cond - w * none
    torch.testing.assert_close(guided_velocity(cond, none, 1 + w), expected)
    torch.testing.assert_close(guided_velocity(cond, none, torch.full((3,), 1 + w)), expected)


def test_scale_one_is_the_conditional_velocity_and_zero_the_unconditional() -> None:
    cond, none = draw(2), draw(3)
    torch.testing.assert_close(guided_velocity(cond, none, 1.0), cond)
    assert torch.equal(guided_velocity(cond, none, 0.0), none)
    mixed = guided_velocity(cond, none, torch.tensor([0.0, 1.0, 3.0]))
    assert torch.equal(mixed[0], none[0])
    torch.testing.assert_close(mixed[2], none[2] + 3 * (cond[2] - none[2]))


def test_the_student_learns_the_guided_velocity_and_the_teacher_nothing() -> None:
    z, eps, sigma, scale = draw(4), draw(5), torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, 2.5, 6.0])
    a, c = (torch.tensor(value, requires_grad=True) for value in (0.3, 0.7))
    loss = cfg_distillation_loss(
        lambda x, s: a * x, lambda x, s: c * x.sin(), lambda x, s: c * x.cos(), z, eps, sigma, scale
    )
    x = add_noise(z, eps, sigma)
    w = (scale - 1).view(3, 1, 1, 1, 1)
    goal = 0.7 * ((1 + w) * x.sin() - w * x.cos())
    torch.testing.assert_close(loss, (0.3 * x - goal).square().mean())
    loss.backward()
    torch.testing.assert_close(a.grad, (2 * (0.3 * x - goal) * x).mean())
    assert c.grad is None


def test_a_student_equal_to_the_guided_teacher_has_no_distance() -> None:
    z, eps, sigma, scale = draw(6), draw(7), torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, 2.5, 6.0])
    factor = scale.view(3, 1, 1, 1, 1)
    loss = cfg_distillation_loss(
        lambda x, s: x.cos() + factor * (x.sin() - x.cos()), lambda x, s: x.sin(), lambda x, s: x.cos(), z, eps, sigma,
        scale,
    )  # fmt: skip
    assert float(loss) < 1e-12

"""Ground-truth supervision: zero for a perfect generator, otherwise equal to the formula."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.flow import add_noise
from magicdistill_core.objectives.supervision import paired_distance, supervision_loss

SIGMA = torch.tensor([1.0, 0.8333, 0.625])


def draw(seed: int) -> Tensor:
    return torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distance", ["huber", "mse"])
def test_a_perfect_generator_has_no_loss(distance: str) -> None:
    z, eps = draw(0), draw(1)
    loss = supervision_loss(lambda x, s: eps - z, z, eps, SIGMA, distance=distance, xi=1e-3)
    assert float(loss) < 1e-6


def test_the_loss_is_the_formula_at_the_generators_x0() -> None:
    z, eps, weight = draw(0), draw(1), torch.tensor(0.3, requires_grad=True)
    loss = supervision_loss(lambda x, s: weight * x, z, eps, SIGMA, distance="huber", xi=0.1)
    s = SIGMA.reshape(3, 1, 1, 1)
    x = add_noise(z, eps, SIGMA)
    expected = (torch.sqrt((x - s * 0.3 * x - z) ** 2 + 0.01) - 0.1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert weight.grad.abs() > 0


def test_the_distances() -> None:
    x, z = torch.tensor([3.0, 0.0]), torch.zeros(2)
    torch.testing.assert_close(paired_distance(x, z, "mse", 1e-3), torch.tensor(4.5))
    # Far from zero the distance is the absolute difference; at zero it is smooth.
    torch.testing.assert_close(paired_distance(x, z, "huber", 1e-3), torch.tensor(1.5), atol=1e-3, rtol=0)

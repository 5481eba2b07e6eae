"""The rollout compared with a hand-written loop, its gradient, and its number of model calls."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.rollout import rollout

SIGMAS = few_step_sigmas(4, 5.0)


class Counted:
    def __init__(self) -> None:
        self.scale = torch.tensor(0.3, requires_grad=True)
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * x + sigma.reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("exit_index", range(4))
def test_euler_walk_and_gradient_of_the_last_call_only(exit_index: int) -> None:
    noise = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    model = Counted()
    x_hat = rollout(model, noise, SIGMAS, exit_index, "euler", [])
    x = noise
    for k in range(exit_index):
        x = x + (SIGMAS[k + 1] - SIGMAS[k]) * (0.3 * x + SIGMAS[k])
    expected = x - SIGMAS[exit_index] * (0.3 * x + SIGMAS[exit_index])
    torch.testing.assert_close(x_hat, expected)
    assert model.calls == exit_index + 1
    x_hat.sum().backward()
    torch.testing.assert_close(model.scale.grad, -(SIGMAS[exit_index] * x).sum())


def test_renoise_walk_uses_the_given_noise() -> None:
    noise, fresh = (torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    x_hat = rollout(Counted(), noise, SIGMAS, 1, "renoise", [fresh])
    x0 = noise - (0.3 * noise + 1)
    x = (1 - SIGMAS[1]) * x0 + SIGMAS[1] * fresh
    torch.testing.assert_close(x_hat, x - SIGMAS[1] * (0.3 * x + SIGMAS[1]))


@pytest.mark.parametrize("exit_index", [-1, 4])
def test_an_exit_outside_the_schedule_is_refused(exit_index: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3"):
        rollout(Counted(), torch.zeros(1, 1, 1, 1, 1), SIGMAS, exit_index, "euler", [])

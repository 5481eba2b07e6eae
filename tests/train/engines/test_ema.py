"""The moving average of the weights: what it keeps of which update."""

import pytest
import torch

from train.config.sections import EmaConfig
from train.engines.ema import GeneratorEma
from train.pocket.stage import PlainEngine


def average_after(values: list[float], decay: float, start: int = 0, first: float = 0.0) -> float:
    """The average of one weight that has `first` at the beginning and then these values after each update."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, first)
    ema = GeneratorEma(
        PlainEngine(network, torch.optim.AdamW(network.parameters())), EmaConfig(decay=decay, start=start)
    )
    for value in values:
        torch.nn.init.constant_(network.weight, value)
        ema.update()
    with ema.applied():
        return float(network.weight.detach())


def test_the_start_is_forgotten_within_few_updates() -> None:
    """A constant decay of 0.9995 would keep 22 % of the untrained weights after 3000 updates."""
    assert average_after([0.0] * 100, 0.9995, first=1.0) < 1e-6


def test_the_average_covers_the_newest_tenth_of_a_short_run() -> None:
    """Weights that move evenly: the average is behind by about a tenth of the updates, or by 1 / (1 - decay)."""
    moving = [float(update) for update in range(1, 1001)]
    assert average_after(moving, 0.9999) == pytest.approx(900, abs=5)
    assert average_after(moving, 0.9) == pytest.approx(991, abs=0.1)


def test_until_the_start_it_equals_the_weights() -> None:
    assert average_after([1.0, 2.0, 3.0], 0.5, start=3) == 3
    # The first averaged update keeps min(0.5, 2 / 11).
    assert average_after([1.0, 2.0, 3.0, 14.0], 0.5, start=3) == pytest.approx(12)

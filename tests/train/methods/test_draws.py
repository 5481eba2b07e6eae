"""Random draws depend only on the seed, the purpose, the update and the position."""

from typing import Any

import pytest
import torch

from train.data.read_ahead import ReadAhead
from train.methods.draws import Draws


def test_noise_of_a_position_does_not_depend_on_the_process() -> None:
    whole = Draws(3).noise("rollout", 7, [0, 1, 2, 3], (2, 2))
    parts = torch.cat([Draws(3).noise("rollout", 7, [0, 1], (2, 2)), Draws(3).noise("rollout", 7, [2, 3], (2, 2))])
    assert torch.equal(whole, parts)


def test_different_places_have_different_noise() -> None:
    draws = Draws(0)
    base = draws.noise("rollout", 1, [0], (64,))
    others = [
        draws.noise("loss", 1, [0], (64,)),
        draws.noise("rollout", 2, [0], (64,)),
        Draws(1).noise("rollout", 1, [0], (64,)),
    ]
    assert all((base - other).abs().mean() > 0.5 for other in others)


def test_every_sample_once_an_epoch_in_a_new_order() -> None:
    draws = Draws(0)
    seen = [index for batch in range(6) for index in draws.sample_indices(batch, [0, 1, 2], 3, 9)]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9))
    assert seen[:9] != seen[9:]


def test_two_million_samples_cost_one_permutation_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One permutation takes longer than an update of a small model."""
    permutations = []

    def permute(length: int, **options: Any) -> torch.Tensor:
        permutations.append(length)
        return torch.arange(length)

    monkeypatch.setattr(torch, "randperm", permute)
    length, size = 2_000_000, 64
    for first in (0, length // size - 50):  # the second part crosses into the next epoch
        for batch in range(first, first + 100):
            indices = Draws(7).sample_indices(batch, list(range(size)), size, length)
            assert indices == [(batch * size + place) % length for place in range(size)]
    assert permutations == [length, length]


def test_exits_cover_all_steps_evenly() -> None:
    counts = torch.bincount(torch.tensor([Draws(0).exit_index(update, 4) for update in range(2000)]), minlength=4)
    assert (counts - 500).abs().max() < 80


def test_levels_are_in_the_clamped_range_and_shifted() -> None:
    levels = Draws(0).sigma("level", 0, list(range(2000)), 5.0)
    assert 0.02 <= levels.min() < levels.max() <= 0.98
    # The median of shift_5(U) is 5 * 0.5 / (1 + 4 * 0.5).
    torch.testing.assert_close(levels.median(), torch.tensor(5 / 6), atol=0.02, rtol=0)


def test_a_large_batch_that_is_drawn_ahead_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    positions = list(range(3, 150))
    both = Draws(0, ReadAhead(torch.device("cuda"))), Draws(0)
    for update in range(4):
        noise = [draws.noise("loss", update, positions, (2, 3)) for draws in both]
        levels = [draws.sigma("loss", update, positions, 5.0) for draws in both]
        assert torch.equal(*noise)
        assert torch.equal(*levels)

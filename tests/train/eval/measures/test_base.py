import pytest
import torch

from train.eval.measures.base import Sampled, with_short_side


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("group", [1, 4, 16])
def test_groups_do_not_change_which_frames_are_chosen(step: int, group: int) -> None:
    frames = torch.arange(40).view(40, 1, 1, 1)
    chosen = Sampled(step)
    found = torch.cat([chosen(part) for part in frames.split(group)])
    assert torch.equal(found, frames[::step])


def test_large_frames_become_smaller_and_small_ones_stay() -> None:
    large = torch.full((2, 400, 300, 3), 51, dtype=torch.uint8)
    smaller = with_short_side(large, 100)
    assert smaller.shape == (2, 3, 133, 100)
    assert smaller.mean().item() == pytest.approx(0.2)
    assert with_short_side(large[:, :50, :60], 100).shape == (2, 3, 50, 60)

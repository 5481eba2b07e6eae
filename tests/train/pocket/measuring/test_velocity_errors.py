"""Errors of velocities on held-out clips, against closed forms."""

from dataclasses import replace

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.pocket.files import TEACHER
from train.pocket.measuring.velocity_errors import HeldOutClips, held_out_loss, unexplained_guidance


@pytest.fixture(scope="module")
def held() -> HeldOutClips:
    clips = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(99))
    return HeldOutClips(load_checkpoint(TEACHER), clips)


def test_the_teacher_itself_explains_no_guidance(held: HeldOutClips) -> None:
    assert unexplained_guidance(held, held.teacher).tolist() == pytest.approx([1, 1])


def test_held_out_loss_is_that_of_the_velocity(held: HeldOutClips) -> None:
    zero = {key: torch.zeros_like(value) for key, value in held.teacher.state.items()}
    # A network of zeros predicts zero, so its loss is the mean square of the target: noise plus clip.
    expected = (1 + held.clips.square().flatten(1).mean(1)).tolist()
    assert held_out_loss(held, replace(held.teacher, state=zero)).tolist() == pytest.approx(expected, rel=0.1)

"""Held-out portraits and their other futures."""

import pytest
import torch

from magicdistill_core.pocket.files import VAE
from magicdistill_core.pocket.render import portrait_clip
from train.data.vae import load_vae
from train.pocket.dataset import HELD_OUT_SEED, to_unit_frames
from train.pocket.measuring.held_out import HeldOut, encode, hold_out


@pytest.fixture(scope="module")
def held() -> HeldOut:
    return hold_out(load_vae(VAE), 2, 2)


def test_futures_continue_the_same_first_frame(held: HeldOut) -> None:
    for clip in range(2):
        for future in range(3):
            frames = to_unit_frames(portrait_clip(HELD_OUT_SEED + clip, future=future)[None])
            expected = encode(load_vae(VAE), frames)[0]
            found = held.truths[clip] if future == 0 else held.futures[clip, future - 1]
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(found[:, :1], held.images[clip])
    assert (held.futures[:, 0] - held.futures[:, 1])[:, :, 1:].abs().mean() > 0.01

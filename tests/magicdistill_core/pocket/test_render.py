"""The renderer: reproducible bytes for a seed, different people, moving faces."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.render import portrait, portrait_clip, render_portrait


def _digest(seed: int) -> str:
    return hashlib.sha256(portrait_clip(seed).numpy().tobytes()).hexdigest()


def test_clip_has_the_promised_shape() -> None:
    clip = portrait_clip(3, frames=5, size=48)
    assert clip.shape == (5, 48, 48, 3)
    assert clip.dtype == torch.uint8


def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "import hashlib; from magicdistill_core.pocket.render import portrait_clip;"
        "print(hashlib.sha256(portrait_clip(11).numpy().tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == _digest(11)


def test_seeds_are_different_people() -> None:
    first_frames = torch.stack([portrait_clip(seed, frames=1)[0] for seed in range(12)]).float()
    distances = torch.cdist(first_frames.flatten(1), first_frames.flatten(1)) / first_frames[0].numel() ** 0.5
    assert distances[~torch.eye(12, dtype=torch.bool)].min() > 15


def test_every_clip_moves_and_its_background_does_not() -> None:
    for seed in range(12):
        clip = portrait_clip(seed).float()
        # A visible change over the clip, in grey levels averaged over the picture.
        # A visible change over the clip, in grey levels averaged over the picture.
        assert (clip - clip[0]).abs().mean(dim=(1, 2, 3)).max() > 1, seed
        corner = clip[:, :4, :4]
        assert (corner - corner[0]).abs().max() == 0, seed


def test_the_mouth_opens_in_the_lower_half() -> None:
    """Speech changes the lower half and not the top of the picture: compare with the same portrait without speech."""
    spec = portrait(0, direction=Direction("still", speaks=True, blinks=False))
    quiet = replace(spec, future=replace(spec.future, speech=0.0))
    change = (render_portrait(spec).float() - render_portrait(quiet).float()).abs().amax(dim=(0, 3))
    rows = change.max(dim=1).values
    assert rows[96 // 2 :].max() > 60
    assert rows[: 96 // 4].max() == 0


def test_futures_share_the_first_frame_and_differ_later() -> None:
    clips = torch.stack([portrait_clip(4, future=future) for future in range(3)]).float()
    assert torch.equal(clips[0, 0], clips[1, 0])
    assert torch.equal(clips[0, 0], clips[2, 0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (clips[one, -1] - clips[other, -1]).abs().mean() > 1


def test_resolution_is_a_free_choice() -> None:
    """A clip rendered at twice the size and then reduced is nearly the same clip: shapes have relative units."""
    small = portrait_clip(5, frames=2, size=48).float()
    large = portrait_clip(5, frames=2, size=96).float()
    reduced = large.unflatten(1, (48, 2)).unflatten(3, (48, 2)).mean(dim=(2, 4))
    assert (reduced - small).abs().mean() < 3


@pytest.mark.parametrize(("frames", "size"), [(0, 96), (17, 8)])
def test_impossible_sizes_are_refused(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames of {size} x {size} .*16 x 16"):
        portrait_clip(0, frames, size)

"""Faces that are broken in the latents: which latents change, and by how much."""

import torch

from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait
from train.pocket.measuring.reader.broken_latents import break_latents
from train.pocket.measuring.reader.places import places_of

SPEC = portrait(0)
PLACES = places_of(SPEC, pose_at(SPEC, frame_times(17)), 96)


def broken(latents: torch.Tensor, seed: int, strength: float = 1.0) -> torch.Tensor:
    return break_latents(latents, PLACES, torch.Generator().manual_seed(seed), strength)


def test_a_region_changes_from_some_latent_frame_on() -> None:
    latents = torch.randn(16, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    beginnings = set()
    for seed in range(40):
        changed = (broken(latents, seed) - latents).abs().amax(dim=(0, 2, 3)) > 0
        assert not changed[0]
        assert changed[-1]
        assert (changed.int().diff() >= 0).all()
        beginnings.add(int(changed.int().argmax()))
    assert beginnings == {1, 2, 3, 4}


def test_white_latents_stay_white_and_strength_scales_the_change() -> None:
    latents = torch.randn(16, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    strong = [broken(latents, seed) for seed in range(40)]
    # Also where a region holds a mixture, no value is far outside of what latents are.
    assert max(float(each.abs().max()) for each in strong) < 1.5 * float(latents.abs().max()) + 0.5
    weak = [broken(latents, seed, 0.1) for seed in range(40)]
    changes = [sum(float((each - latents).square().sum()) for each in made) for made in (weak, strong)]
    assert 0 < changes[0] < 0.1 * changes[1]

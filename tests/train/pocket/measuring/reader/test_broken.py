"""Faces that are broken on purpose: what is painted where, and how visible it is."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait, portrait_clip
from train.pocket.dataset import to_unit_frames
from train.pocket.measuring.reader.broken import (
    BREAKAGES,
    INVISIBLE,
    PAINTED,
    VISIBLE,
    paint_broken,
    visibility,
    with_specks,
)
from train.pocket.measuring.reader.places import Places, places_of
from train.pocket.measuring.reader.retouching import Chance

TIME = 2  # Before the first blink of any clip, so the eyes are open.


@pytest.fixture(scope="module")
def faces() -> list[tuple[Tensor, Places]]:
    found = []
    for seed in range(6):
        spec = portrait(seed)
        places = places_of(spec, pose_at(spec, frame_times(TIME + 1)), 96)[TIME]
        found.append((to_unit_frames(portrait_clip(seed, TIME + 1))[TIME], places))
    return found


def painted(face: tuple[Tensor, Places], kind: str, strength: float, seed: int = 0) -> Tensor:
    return paint_broken(*face, kind, torch.Generator().manual_seed(seed), strength)


@pytest.mark.parametrize("kind", PAINTED)
def test_every_kind_is_visible_at_full_strength_and_repeatable(faces: list[tuple[Tensor, Places]], kind: str) -> None:
    seen = []
    for face in faces:
        for seed in range(4):
            broken = painted(face, kind, 1.0, seed)
            assert 0 <= broken.min() <= broken.max() <= 1
            assert torch.equal(broken, painted(face, kind, 1.0, seed))
            seen.append(visibility(face[0], broken) >= BREAKAGES[kind].visible_from)
    # Hair on hair of the same colour, or a mouth as dark as the beard, remains invisible and is then no breakage.
    assert sum(seen) >= 0.6 * len(seen)


@pytest.mark.parametrize("kind", ["missing eye", "unlike eyes", "smeared eyes", "missing mouth", "smeared mouth"])
def test_a_breakage_stays_where_its_part_of_the_face_is(faces: list[tuple[Tensor, Places]], kind: str) -> None:
    line = torch.arange(96.0)
    for frame, places in faces:
        change = (painted((frame, places), kind, 1.0) - frame).abs().amax(dim=0)
        parts = (places.mouth,) if "mouth" in kind else (places.left_eye, places.right_eye)
        reach = 2.6 * max(*places.mouth_radii) if "mouth" in kind else 2.6 * max(places.eye_radii)
        near = torch.stack([((line[None] - x) ** 2 + (line[:, None] - y) ** 2).sqrt() < reach for x, y in parts])
        assert change[~near.any(dim=0)].max() < 1e-6
        assert change.max() > VISIBLE


@pytest.mark.parametrize("kind", ["missing eye", "smeared mouth", "specks"])
def test_a_weaker_breakage_is_less_visible(faces: list[tuple[Tensor, Places]], kind: str) -> None:
    def mean_visibility(strength: float) -> float:
        return sum(visibility(face[0], painted(face, kind, strength, s)) for face in faces for s in range(4)) / 24

    assert mean_visibility(0.1) < mean_visibility(0.5) < mean_visibility(1.0)


def test_visibility_is_the_colour_difference_of_what_is_seen() -> None:
    flat = torch.full((3, 96, 96), 0.4)
    assert visibility(flat, flat) == 0
    assert visibility(flat, flat + 0.2) == pytest.approx(0.2, abs=1e-5)
    one_channel = flat.clone()
    one_channel[0] += 0.3
    assert visibility(flat, one_channel) == pytest.approx(0.3 / 3**0.5, abs=1e-5)
    spot, point, faint = flat.clone(), flat.clone(), flat.clone()
    spot[:, 40:46, 40:46] = 0.9
    point[:, 40, 40] = 0.9
    faint[:, 40:46, 40:46] += 0.02
    assert visibility(flat, spot) == pytest.approx(0.5, abs=0.05)
    assert INVISIBLE < visibility(flat, point) < VISIBLE
    assert visibility(flat, faint) < INVISIBLE


def test_the_same_breakage_follows_the_face() -> None:
    """In a clip whose head turns, the missing eye is at the place of the eye in every frame."""
    spec = portrait(3)
    clip = to_unit_frames(portrait_clip(3))
    every = places_of(spec, pose_at(spec, frame_times(17)), 96)
    sides = set()
    for time in (0, 8, 16):
        change = (painted((clip[time], every[time]), "missing eye", 1.0) - clip[time]).square().sum(dim=0)
        weight = change / change.sum()
        x, y = (float(weight.sum(dim=axis) @ torch.arange(96.0)) for axis in (0, 1))
        eyes = every[time].left_eye, every[time].right_eye
        distances = [((x - eye[0]) ** 2 + (y - eye[1]) ** 2) ** 0.5 for eye in eyes]
        assert min(distances) < 4
        sides.add(distances[0] < distances[1])
    assert len(sides) == 1


def test_specks_are_as_many_as_asked_for(faces: list[tuple[Tensor, Places]]) -> None:
    frame, places = faces[0]

    def changed(count: int) -> float:
        specked = with_specks(frame, places, Chance(torch.Generator().manual_seed(0)), count, 0.7)
        return float(((specked - frame).abs() > 0.02).sum())

    assert changed(0) == 0
    assert 2 < changed(16) / changed(4) < 8
    assert 2 < changed(64) / changed(16) < 8

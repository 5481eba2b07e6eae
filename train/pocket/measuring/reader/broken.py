"""Faces that are broken on purpose: the negative examples of "this face is whole".

Each kind paints a defect that generators of portraits make. The strength, from 0 to 1, scales size and opacity.
`visibility` says how much a person would see of it: a breakage that nobody sees is none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blur import blur
from .places import Places
from .retouching import Chance, Point, blend, displaced, ellipse, filled, grid, shifted, smeared

# The visibility up to which a change is no breakage, and from which painted defects are one. Between the two, persons
# would disagree.
INVISIBLE, VISIBLE = 0.03, 0.1

# Pixels of the most visible part of a change: about a spot of 4 x 4 pixels.
_SEEN_PIXELS = 12

Painter = Callable[[Tensor, Places, Chance, float], Tensor]


# The kind that `broken_latents` makes, before the decoder.
LATENTS = "broken latents"


@dataclass(frozen=True)
class Breakage:
    """What a kind of breakage means for the labels of a frame.

    Attributes:
        spoils: the part of the face that can no longer be read: "eyes", "mouth", "face", or "" for none.
        visible_from: the visibility from which it counts. What is bent or mixed and not painted over keeps natural
            colours and edges, so a larger change is needed before a person notices it.
    """

    spoils: str
    visible_from: float = VISIBLE


BREAKAGES: dict[str, Breakage] = {
    "missing eye": Breakage("eyes"),
    "unlike eyes": Breakage("eyes"),
    "smeared eyes": Breakage("eyes"),
    "missing mouth": Breakage("mouth"),
    "smeared mouth": Breakage("mouth"),
    "doubled feature": Breakage("face"),
    "torn patches": Breakage(""),
    "specks": Breakage(""),
    "melted half": Breakage("face"),
    "warp": Breakage("face", visible_from=0.2),
    LATENTS: Breakage("face", visible_from=0.15),
}
# The kinds that `paint_broken` paints.
PAINTED = tuple(kind for kind in BREAKAGES if kind != LATENTS)


def visibility(before: Tensor, after: Tensor) -> float:
    """Return how visible the change of a picture is: the mean colour difference of its 12 most changed pixels.

    Colours are display values in [0, 1]; the difference is the root mean square over the channels. A slight blur before
    the comparison keeps single pixels from counting like spots.

    Args:
        before: `[3, H, W]` in [0, 1].
        after: the changed picture, shaped as `before`.
    """
    change = blur(after - before, 0.7).square().mean(dim=0).sqrt()
    return float(change.flatten().topk(_SEEN_PIXELS).values.mean())


def paint_broken(frame: Tensor, places: Places, kind: str, generator: torch.Generator, strength: float) -> Tensor:
    """Return a frame with a breakage, `[3, H, W]` in [0, 1].

    Args:
        frame: `[3, H, W]` in [0, 1], H equal to W.
        places: where the parts of the face are in this frame.
        kind: a name of `PAINTED`.
        generator: a CPU generator for position, shape and colour. The same state paints the same breakage on the next
            frame of a clip, where it follows the face.
        strength: size and opacity, above 0 and up to 1.
    """
    return _PAINTERS[kind](frame, places, Chance(generator), strength).clamp(0, 1)


def _an_eye(places: Places, chance: Chance) -> Point:
    return places.left_eye if chance.sign() < 0 else places.right_eye


def _eye_mask(frame: Tensor, places: Places, eye: Point, wider: float, taller: float) -> Tensor:
    radii = wider * places.eye_radii[0], taller * places.eye_radii[1]
    return ellipse(frame.shape[-1], eye, radii, places.roll, softness=2.5)


def _missing_eye(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """One eye is covered with skin."""
    mask = _eye_mask(frame, places, _an_eye(places, chance), chance.uniform(1.1, 1.5), chance.uniform(1.3, 1.8))
    return blend(frame, filled(frame, mask), mask * (0.4 + 0.6 * strength))


def _unlike_eyes(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """One eye is closed: covered with skin, with a dark line of lashes. Visible only if the other one is open."""
    size, (wide, tall) = frame.shape[-1], places.eye_radii
    eye = _an_eye(places, chance)
    mask = _eye_mask(frame, places, eye, 1.15, 1.25)
    closed = blend(frame, filled(frame, mask), mask * (0.4 + 0.6 * strength))
    # The lashes are the lower part of the rim of an ellipse.
    outer = ellipse(size, eye, (1.05 * wide, chance.uniform(0.5, 0.9) * tall), places.roll, softness=1.2)
    above = ellipse(size, (eye[0], eye[1] - 1.6), (1.15 * wide, 0.7 * tall), places.roll, softness=1.2)
    lashes = (outer - above).clamp(0, 1) * strength
    return blend(closed, torch.tensor([0.13, 0.09, 0.09]).view(3, 1, 1), 0.8 * lashes)


def _smear(frame: Tensor, mask: Tensor, chance: Chance, strength: float) -> Tensor:
    wiped = smeared(frame, chance.direction(3 + 5 * strength, 5 + 9 * strength))
    return blend(frame, blur(wiped, 0.6 + 1.6 * strength), mask)


def _smeared_eyes(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """One or both eyes are wiped away."""
    first = chance.whole(0, 1)
    eyes = (places.left_eye, places.right_eye)[first : first + chance.whole(1, 2)]
    masks = [_eye_mask(frame, places, eye, chance.uniform(1.3, 1.8), chance.uniform(1.5, 2.2)) for eye in eyes]
    return _smear(frame, torch.stack(masks).amax(dim=0), chance, strength)


def _mouth_mask(frame: Tensor, places: Places, wider: float, taller: float) -> Tensor:
    radii = wider * places.mouth_radii[0], max(taller * places.mouth_radii[1], 3.0)
    return ellipse(frame.shape[-1], places.mouth, radii, places.roll, softness=2.5)


def _smeared_mouth(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """The mouth is wiped away."""
    mask = _mouth_mask(frame, places, chance.uniform(1.1, 1.5), chance.uniform(1.5, 2.5))
    return _smear(frame, mask, chance, strength)


def _missing_mouth(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """The mouth, or a part of it, is covered with skin."""
    x, y = places.mouth
    aside = chance.uniform(-0.6, 0.6) * places.mouth_radii[0]
    radii = chance.uniform(0.7, 1.3) * places.mouth_radii[0], max(1.8 * places.mouth_radii[1], 3.5)
    mask = ellipse(frame.shape[-1], (x + aside, y), radii, places.roll, softness=2.5)
    return blend(frame, filled(frame, mask), mask * (0.4 + 0.6 * strength))


def _doubled(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """An eye or the mouth appears a second time next to itself."""
    if chance.whole(0, 2):
        place = _an_eye(places, chance)
        wide, tall = 1.25 * places.eye_radii[0], 1.5 * places.eye_radii[1]
    else:
        place = places.mouth
        wide, tall = 1.1 * places.mouth_radii[0], max(1.6 * places.mouth_radii[1], 3.0)
    x, y = chance.direction(1.0, 1.6)
    by = (x * wide * 0.9, y * tall * 1.1)
    mask = ellipse(frame.shape[-1], (place[0] + by[0], place[1] + by[1]), (wide, tall), places.roll, softness=3)
    return blend(frame, shifted(frame, by), mask * (0.4 + 0.6 * strength))


def _torn(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """Patches along hair and jaw show what belongs elsewhere, with hard and ragged edges."""
    size = frame.shape[-1]
    x, y = grid(size)
    torn = frame
    for _ in range(chance.whole(1, 2 + round(3 * strength))):
        point = places.outline[chance.whole(0, len(places.outline) - 1)].tolist()
        away = chance.direction(0, 4)
        dx, dy = x - point[0] - away[0], y - point[1] - away[1]
        angle = torch.atan2(dy.expand(size, size), dx.expand(size, size))
        wobble = sum(chance.uniform(0.1, 0.3) * torch.cos(n * angle + chance.uniform(0, 6.3)) for n in (2, 3, 5))
        radius = chance.uniform(2.0, 3.0 + 5.0 * strength) * (1 + wobble)
        mask = (radius - (dx * dx + dy * dy).sqrt()).clamp(0, 1)
        torn = blend(torn, shifted(frame, chance.direction(7, 20)), mask)
    return torn


def _specks(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    return with_specks(frame, places, chance, chance.whole(2, 4 + round(36 * strength)), 0.4 + 0.6 * strength)


def with_specks(frame: Tensor, places: Places, chance: Chance, count: int, opacity: float) -> Tensor:
    """Return a frame with small dots of wrong colours on face, hair and their edges, `[3, H, W]` in [0, 1].

    Args:
        frame: `[3, H, W]` in [0, 1].
        places: where the parts of the face are in this frame.
        chance: random numbers for positions, shapes and colours.
        count: number of dots.
        opacity: the largest opacity of a dot, above 0.15 and up to 1.
    """
    size = frame.shape[-1]
    x, y = grid(size)
    specked = frame
    width, height = places.head_radii
    for _ in range(count):
        reach, angle = chance.uniform(0.1, 1.2) ** 0.6, torch.tensor(chance.uniform(0, 6.3))
        at_x = places.head[0] + float(reach * width * angle.cos())
        at_y = places.head[1] + float(reach * height * angle.sin())
        if chance.whole(0, 1):
            color = torch.full((3,), float(chance.whole(0, 1)))
        else:
            color = frame[:, chance.whole(0, size - 1), chance.whole(0, size - 1)]
        radius, long = chance.uniform(0.6, 1.7), chance.uniform(1.0, 1.8)
        turn = torch.tensor(chance.uniform(0, 3.15))
        along = (x - at_x) * turn.cos() + (y - at_y) * turn.sin()
        across = (y - at_y) * turn.cos() - (x - at_x) * turn.sin()
        mask = (radius + 0.5 - ((along / long) ** 2 + across**2).sqrt()).clamp(0, 1)
        specked = blend(specked, color.view(3, 1, 1), mask * chance.uniform(0.15, opacity))
    return specked


def _melted(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """One half of the face flows away."""
    size = frame.shape[-1]
    x, y = grid(size)
    face = ellipse(size, places.head, places.head_radii, places.roll, softness=8)
    side = chance.direction(1, 1)
    beyond = (x - places.head[0]) * side[0] + (y - places.head[1]) * side[1]
    half = (0.5 + (beyond - chance.uniform(-6, 4)) / 6).clamp(0, 1)
    waves = [
        (4 + 8 * strength) * torch.sin(chance.uniform(0.15, 0.35) * line + chance.uniform(0, 6.3)) for line in (y, x)
    ]
    flown = smeared(displaced(frame, waves[0], waves[1]), chance.direction(2, 4 + 6 * strength))
    return blend(frame, blur(flown, 1.0 + strength), face * half)


def _warped(frame: Tensor, places: Places, chance: Chance, strength: float) -> Tensor:
    """The picture is bent around eyes, mouth or outline."""
    x, y = grid(frame.shape[-1])
    anchors = [places.left_eye, places.right_eye, places.mouth]
    dx = dy = torch.zeros(frame.shape[-2:])
    for _ in range(chance.whole(1, 3)):
        if chance.whole(0, 3):
            point = anchors[chance.whole(0, 2)]
        else:
            at = places.outline[chance.whole(0, len(places.outline) - 1)]
            point = float(at[0]), float(at[1])
        width = chance.uniform(3.5, 7)
        center = point[0] + chance.uniform(-4, 4), point[1] + chance.uniform(-4, 4)
        bump = torch.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * width**2))
        # The picture folds where the displacement changes by more than one pixel per pixel: from 1.65 widths on.
        pull = chance.direction((0.4 + 0.6 * strength) * width, (0.8 + strength) * width)
        dx, dy = dx + pull[0] * bump, dy + pull[1] * bump
    return displaced(frame, dx, dy)


_PAINTERS: dict[str, Painter] = {
    "missing eye": _missing_eye,
    "unlike eyes": _unlike_eyes,
    "smeared eyes": _smeared_eyes,
    "missing mouth": _missing_mouth,
    "smeared mouth": _smeared_mouth,
    "doubled feature": _doubled,
    "torn patches": _torn,
    "specks": _specks,
    "melted half": _melted,
    "warp": _warped,
}

"""The parameters of a pocket portrait: a person, their clothes, the background, the light, and the motion.

A `PortraitSpec` consists of plain numbers, sampled once from a seeded generator. `render` draws it.
Lengths on the face are in head units: the top of the skull is at v = -1, the chin at v = +1, the nose at u = 0.
Positions in the picture are in half-image units: the picture covers [-1, 1] in x and in y. The y axis points down.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from .motion import Beginning, Direction, Future, sample_beginning, sample_direction, sample_future

Color = tuple[float, float, float]

_SKIN: tuple[Color, ...] = (
    (0.99, 0.86, 0.77),
    (0.96, 0.78, 0.66),
    (0.90, 0.70, 0.53),
    (0.80, 0.58, 0.42),
    (0.64, 0.43, 0.29),
    (0.47, 0.30, 0.20),
    (0.35, 0.22, 0.16),
)
_HAIR: tuple[Color, ...] = (
    (0.07, 0.06, 0.07),
    (0.16, 0.10, 0.07),
    (0.31, 0.19, 0.11),
    (0.48, 0.30, 0.16),
    (0.80, 0.62, 0.33),
    (0.90, 0.80, 0.58),
    (0.58, 0.22, 0.09),
    (0.62, 0.61, 0.61),
    (0.85, 0.85, 0.86),
    (0.22, 0.35, 0.62),
    (0.72, 0.30, 0.48),
)
_HAIR_WEIGHT = (4, 4, 4, 3, 2, 2, 2, 1.5, 1, 0.7, 0.7)
_IRIS: tuple[Color, ...] = (
    (0.26, 0.15, 0.08),
    (0.40, 0.26, 0.12),
    (0.28, 0.44, 0.62),
    (0.25, 0.46, 0.32),
    (0.42, 0.47, 0.50),
)
HAIR_STYLES = ("short", "bangs", "parted", "long", "curly", "bun", "bald")
COLLARS = ("crew", "vee", "shirt")


@dataclass(frozen=True)
class Place:
    """The background: a gradient of two colours along `angle`, and soft discs (x, y, radius, softness, opacity)."""

    near: Color
    far: Color
    angle: float
    discs: tuple[tuple[float, float, float, float, float], ...]
    disc_colors: tuple[Color, ...]


@dataclass(frozen=True)
class PortraitSpec:
    """One person in one clip. The units are in the module docstring."""

    skin: Color
    hair: Color
    iris: Color
    lips: Color
    cloth: Color
    cloth_second: Color
    place: Place
    light: tuple[float, float, float]
    head_size: float
    head_width: float
    jaw: float
    center: tuple[float, float]
    hair_style: str
    hairline: float
    hair_volume: float
    hair_length: float
    hair_part: float
    eye_spread: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    eye_level: float
    iris_size: float
    brow_height: float
    brow_thickness: float
    brow_slope: float
    nose_length: float
    nose_width: float
    ear_size: float
    mouth_level: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    smile: float
    blush: float
    beard: float
    moustache: bool
    glasses: bool
    round_glasses: bool
    frame_color: Color
    collar: str
    shoulder_level: float
    neck_width: float
    beginning: Beginning
    future: Future


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _mix(a: Color, b: Color, weight: float) -> Color:
    return (
        a[0] + (b[0] - a[0]) * weight,
        a[1] + (b[1] - a[1]) * weight,
        a[2] + (b[2] - a[2]) * weight,
    )


def _palette(rng: np.random.Generator, anchors: tuple[Color, ...]) -> Color:
    """Draw a colour between two neighbouring anchors."""
    place = rng.uniform(0, len(anchors) - 1)
    index = min(int(place), len(anchors) - 2)
    return _mix(anchors[index], anchors[index + 1], float(place - index))


def _hsv(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    return colorsys.hsv_to_rgb(float(rng.random()), _uniform(rng, *saturation), _uniform(rng, *value))


def _sample_place(rng: np.random.Generator) -> Place:
    near = _hsv(rng, (0.1, 0.6), (0.25, 0.95))
    other = _hsv(rng, (0.1, 0.6), (0.25, 0.95))
    count = int(rng.integers(0, 4))
    discs = tuple(
        (
            _uniform(rng, -1.1, 1.1),
            _uniform(rng, -1.1, 0.6),
            _uniform(rng, 0.15, 0.6),
            _uniform(rng, 0.04, 0.35),
            _uniform(rng, 0.25, 0.7),
        )
        for _ in range(count)
    )
    colors = tuple(_hsv(rng, (0.1, 0.6), (0.3, 1.0)) for _ in range(count))
    return Place(near, _mix(near, other, 0.6), _uniform(rng, 0, 2 * np.pi), discs, colors)


def sample_portrait(generator: np.random.Generator) -> PortraitSpec:
    """Draw the random parameters of a person, a background, a light and a motion.

    Args:
        generator: numpy's generator. The same seed produces the same portrait in every process.
    """
    rng = generator
    skin = _palette(rng, _SKIN)
    weights = np.asarray(_HAIR_WEIGHT) / np.sum(_HAIR_WEIGHT)
    hair = _mix(_HAIR[int(rng.choice(len(_HAIR), p=weights))], skin, _uniform(rng, 0.0, 0.12))
    style = HAIR_STYLES[int(rng.choice(len(HAIR_STYLES), p=(0.2, 0.16, 0.17, 0.18, 0.12, 0.1, 0.07)))]
    bearded = style not in ("long", "bun", "bangs") and rng.random() < 0.4
    light_x, light_y = _uniform(rng, -0.75, 0.75), _uniform(rng, -0.75, -0.25)
    light_z = float(np.sqrt(max(0.15, 1.0 - light_x**2 - light_y**2)))
    norm = float(np.sqrt(light_x**2 + light_y**2 + light_z**2))
    lip_red = _mix((0.80, 0.32, 0.34), (0.62, 0.16, 0.22), float(rng.random()))
    return PortraitSpec(
        skin=skin,
        hair=hair,
        iris=_IRIS[int(rng.choice(len(_IRIS), p=(0.3, 0.25, 0.2, 0.15, 0.1)))],
        lips=_mix(skin, lip_red, _uniform(rng, 0.45, 0.9)),
        cloth=_hsv(rng, (0.1, 0.75), (0.2, 0.95)),
        cloth_second=_hsv(rng, (0.0, 0.4), (0.55, 1.0)),
        place=_sample_place(rng),
        light=(light_x / norm, light_y / norm, light_z / norm),
        head_size=_uniform(rng, 0.88, 1.0),
        head_width=_uniform(rng, 0.70, 0.83),
        jaw=_uniform(rng, -0.12, 0.2),
        center=(_uniform(rng, -0.05, 0.05), _uniform(rng, -0.04, 0.04)),
        hair_style=style,
        hairline=_uniform(rng, -0.66, -0.48),
        hair_volume=_uniform(rng, 1.06, 1.16),
        hair_length=_uniform(rng, 0.75, 1.5),
        hair_part=_uniform(rng, -0.4, 0.4),
        eye_spread=_uniform(rng, 0.29, 0.345),
        eye_width=_uniform(rng, 0.165, 0.2),
        eye_height=_uniform(rng, 0.1, 0.14),
        eye_tilt=_uniform(rng, -0.14, 0.08),
        eye_level=_uniform(rng, -0.1, -0.02),
        iris_size=_uniform(rng, 0.085, 0.105),
        brow_height=_uniform(rng, 0.17, 0.23),
        brow_thickness=_uniform(rng, 0.025, 0.055),
        brow_slope=_uniform(rng, -0.2, 0.14),
        nose_length=_uniform(rng, 0.24, 0.33),
        nose_width=_uniform(rng, 0.085, 0.13),
        ear_size=_uniform(rng, 0.15, 0.2),
        mouth_level=_uniform(rng, 0.5, 0.57),
        mouth_width=_uniform(rng, 0.23, 0.32),
        lip_upper=_uniform(rng, 0.03, 0.06),
        lip_lower=_uniform(rng, 0.045, 0.085),
        smile=_uniform(rng, -0.02, 0.075),
        blush=_uniform(rng, 0.0, 0.3),
        beard=_uniform(rng, 0.7, 0.97) if bearded else 0.0,
        moustache=bool(bearded and rng.random() < 0.7),
        glasses=bool(rng.random() < 0.2),
        round_glasses=bool(rng.random() < 0.5),
        frame_color=_hsv(rng, (0.0, 0.6), (0.05, 0.4)),
        collar=COLLARS[int(rng.integers(len(COLLARS)))],
        shoulder_level=_uniform(rng, 1.02, 1.12),
        neck_width=_uniform(rng, 0.2, 0.28),
        beginning=sample_beginning(rng),
        future=sample_future(rng, sample_direction(rng)),
    )


def with_future(spec: PortraitSpec, generator: np.random.Generator, direction: Direction | None = None) -> PortraitSpec:
    """Return the portrait with the same first frame and another future.

    Args:
        spec: the portrait.
        generator: numpy's generator of the future.
        direction: what the person does. None draws it.
    """
    return replace(spec, future=sample_future(generator, direction or sample_direction(generator)))

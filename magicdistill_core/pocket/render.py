"""Pocket portraits: a procedural, seeded, anti-aliased renderer of talking portraits.

The renderer paints a head as layers of soft-edged shapes on a cylinder. A turn of the head therefore shows true
parallax: eyes, nose and mouth move and become narrower towards the far side, the hairline follows, and one ear
disappears. All arithmetic is single-threaded float32 numpy, vectorised over frames. A seed therefore produces the same
bytes on every machine. The default clip has 17 frames at 24 frames per second. The person sways, turns the head,
blinks, looks around and speaks.
"""

import numpy as np
import torch

from .face import draw_face
from .files import SIZE
from .motion import Direction
from .painting import Array, Canvas, cover, falloff
from .portrait import PortraitSpec, sample_portrait, with_future
from .pose import Pose, in_head, pose_at

FRAMES_PER_SECOND = 24
DEFAULT_FRAMES = 17
DEFAULT_SIZE = SIZE


def portrait(seed: int, future: int = 0, direction: Direction | None = None) -> PortraitSpec:
    """Return the portrait of a seed.

    Args:
        seed: determines the person, the background, the light and the first frame; a whole number from 0 on.
        future: which continuation of the first frame, a whole number from 0 on.
        direction: what the person does. None draws it.
    """
    spec = sample_portrait(np.random.default_rng(seed))
    if future == 0 and direction is None:
        return spec
    return with_future(spec, np.random.default_rng((seed, future)), direction)


def portrait_clip(
    seed: int,
    frames: int = DEFAULT_FRAMES,
    size: int = DEFAULT_SIZE,
    future: int = 0,
    direction: Direction | None = None,
) -> torch.Tensor:
    """Render the clip of a seed: uint8 `[frames, size, size, 3]`, RGB.

    Args:
        seed: see `portrait`.
        frames: number of frames at 24 frames per second.
        size: width and height in pixels.
        future: see `portrait`. All futures of a seed have the same first frame.
        direction: see `portrait`.

    Raises:
        ValueError: see `render_portrait`.
    """
    return render_portrait(portrait(seed, future, direction), frames, size)


def render_portrait(spec: PortraitSpec, frames: int = DEFAULT_FRAMES, size: int = DEFAULT_SIZE) -> torch.Tensor:
    """Render consecutive frames of a portrait: uint8 `[frames, size, size, 3]`, RGB.

    Args:
        spec: the person, from `sample_portrait`.
        frames: number of frames at 24 frames per second, at least 1.
        size: width and height in pixels, at least 16.

    Raises:
        ValueError: if `frames` or `size` is too small to show a face.
    """
    if frames < 1 or size < 16:
        raise ValueError(
            f"Cannot render {frames} frames of {size} x {size} pixels: at least 1 frame of 16 x 16 is needed. "
            f"Choose larger numbers."
        )
    pose = pose_at(spec, frame_times(frames))
    canvas = Canvas(frames, size)
    _draw_background(canvas, spec)
    body = canvas.shifted(0.35 * pose.x, 0.25 * pose.y)
    head = in_head(canvas, pose, spec)
    _draw_back_hair(canvas, spec, head)
    _draw_body(canvas, spec, pose, body)
    draw_face(canvas, spec, pose, head)
    return torch.from_numpy(canvas.to_uint8())


def frame_times(frames: int) -> np.ndarray:
    """Return the times of a clip's frames in seconds, `[frames]`.

    Args:
        frames: number of frames at 24 frames per second.
    """
    return (np.arange(frames) / FRAMES_PER_SECOND).astype(np.float64)


def _draw_background(canvas: Canvas, spec: PortraitSpec) -> None:
    place = spec.place
    x, y = canvas.x, canvas.y
    along = np.clip(0.5 + 0.36 * (x * np.cos(place.angle) + y * np.sin(place.angle)), 0, 1)
    canvas.paint_gradient(along.astype(np.float32), place.near, place.far)
    for (disc_x, disc_y, radius, softness, opacity), color in zip(place.discs, place.disc_colors, strict=True):
        distance = np.sqrt((x - disc_x) ** 2 + (y - disc_y) ** 2) - radius
        canvas.paint(opacity * cover(distance, softness), color)


def _draw_back_hair(canvas: Canvas, spec: PortraitSpec, head: tuple[Array, Array]) -> None:
    """Paint the hair that is behind the neck: long hair, curls, or a bun."""
    u, v = head
    dark = tuple(0.62 * channel for channel in spec.hair)
    px = canvas.pixel / spec.head_size
    width = spec.head_width * spec.hair_volume
    if spec.hair_style in ("long", "parted") and not (spec.hair_style == "parted" and spec.hair_length < 1.0):
        lower = np.clip((v + 0.1) / spec.hair_length, 0, 1)
        reach = width * (1.05 + 0.12 * lower) + 0.02 * np.sin(9 * v)
        outline = np.maximum(np.abs(u) - reach, np.abs(v + 0.1) - spec.hair_length)
        upper = np.sqrt((u / (1.05 * width)) ** 2 + ((v + 0.1) / (0.92 * spec.hair_volume)) ** 2) - 1
        canvas.paint(cover(np.where(v < -0.1, upper * width, outline), 1.4 * px), dark)
    elif spec.hair_style == "curly":
        radius, angle = np.sqrt(u**2 + (v + 0.22) ** 2), np.arctan2(v + 0.22, u)
        edge = 1.02 * spec.hair_volume * (0.96 + 0.035 * np.sin(11 * angle))
        canvas.paint(cover(radius - edge, 1.4 * px), dark)
    elif spec.hair_style == "bun":
        canvas.paint(cover(np.sqrt((u - 0.4 * spec.hair_part) ** 2 + (v + 1.12) ** 2) - 0.3, 1.4 * px), dark)


def _draw_body(canvas: Canvas, spec: PortraitSpec, pose: Pose, body: tuple[Array, Array]) -> None:
    """Paint neck, shoulders and collar. `body` are picture coordinates that partly follow the head."""
    x, y = body
    px = canvas.pixel
    base = spec.shoulder_level
    neck_x = x - spec.center[0] - 0.3 * (pose.x - spec.center[0])
    light_x = spec.light[0]
    # Neck: narrow under the jaw, wider towards the shoulders, darkened by the shadow of the head.
    flare = spec.neck_width + 0.25 * np.clip(y - base + 0.12, 0, 1) ** 1.5
    shade = 0.80 + 0.22 * np.clip(neck_x * light_x / spec.neck_width, -1, 1) * 0.6
    chin = pose.y + spec.head_size * (1.0 + 0.6 * pose.mouth)
    shade = shade - 0.30 * falloff(y - chin, 0.16)
    neck = cover(np.maximum(np.abs(neck_x) - flare, pose.y - y), 1.3 * px)
    canvas.paint_shaded(neck, spec.skin, shade)
    # Shoulders: a rounded slope down to the sides.
    side = np.abs(x - spec.center[0])
    slope = base + 0.16 * side**2 + 0.9 * np.clip(side - 0.72, 0, 1) ** 2
    cloth = cover(slope - y + 0.02, 1.4 * px)
    if spec.collar == "vee":
        cloth = cloth * (1 - cover(side * 1.15 + (y - base - 0.42), 1.4 * px))
    elif spec.collar == "crew":
        dip = np.sqrt(side**2 + ((y - base) * 1.6) ** 2) - spec.neck_width * 1.12
        cloth = cloth * (1 - cover(dip, 1.4 * px))
    else:
        cloth = cloth * (1 - cover(side * 1.6 + (y - base - 0.3), 1.4 * px))
    lit = 0.86 + 0.3 * np.clip((x - spec.center[0]) * light_x, -0.6, 0.6) - 0.2 * np.clip(side - 0.45, 0, 1)
    canvas.paint_shaded(cloth, spec.cloth, lit)
    if spec.collar == "shirt":
        flap = np.maximum(np.abs(side * 1.6 + (y - base - 0.38)) - 0.1, y - base - 0.36)
        canvas.paint_shaded(cover(flap, 1.4 * px) * cover(slope - y - 0.02, px), spec.cloth_second, lit)
    elif spec.collar == "crew":
        dip = np.sqrt(side**2 + ((y - base) * 1.6) ** 2) - spec.neck_width * 1.2
        canvas.paint_shaded(cover(np.abs(dip) - 0.035, 1.4 * px) * cloth, spec.cloth_second, lit)

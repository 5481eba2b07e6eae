"""The head of a pocket portrait: skin, ears, eyes, brows, nose, mouth, beard, glasses, and the hair in front."""

from dataclasses import dataclass

import numpy as np

from .painting import Array, Canvas, Window, cover, falloff
from .portrait import PortraitSpec
from .pose import Pose

_MOUTH_DARK = (0.22, 0.06, 0.07)
_TEETH = (0.95, 0.93, 0.89)
_TONGUE = (0.72, 0.30, 0.31)
_EYE_WHITE = (0.97, 0.96, 0.95)


@dataclass(frozen=True)
class Patch:
    """A window of the canvas with the head coordinates of every pixel (units as in `portrait`).

    All arrays are `[T, h, w]`.

    Attributes:
        u, v: head coordinates.
        fu, fv: face coordinates: the position on the face before it turns (yaw and pitch).
        radius: the head's radius function `r - 1`, see `head_outline`.
        skin: coverage of the head, from 0 to 1.
        px: side of a pixel in head units.
        window: rows and columns of the canvas.
    """

    u: Array
    v: Array
    fu: Array
    fv: Array
    radius: Array
    skin: Array
    px: float
    window: Window

    def band(self, low: float, high: float, half_width: float) -> "Patch":
        """Return the smaller patch with the part of the face between two heights, with a margin for the pitch.

        Args:
            low: the upper border, as head coordinate v.
            high: the lower border, as head coordinate v; larger than `low`, because v grows downwards.
            half_width: the patch covers u from `-half_width` to `half_width`.
        """
        margin = 0.18
        rows = _covered(self.v, (0, 2), low - margin, high + margin)
        columns = _covered(self.u, (0, 1), -half_width, half_width)

        def cut(values: Array) -> Array:
            return values[:, rows, columns]

        window = (
            slice(self.window[0].start + rows.start, self.window[0].start + rows.stop),
            slice(self.window[1].start + columns.start, self.window[1].start + columns.stop),
        )
        u, v, fu, fv = cut(self.u), cut(self.v), cut(self.fu), cut(self.fv)
        return Patch(u, v, fu, fv, cut(self.radius), cut(self.skin), self.px, window)


def _covered(values: Array, axes: tuple[int, int], low: float, high: float) -> slice:
    """Return the index range along the remaining axis where some value is in [low, high]."""
    inside = np.flatnonzero((values.max(axis=axes) >= low) & (values.min(axis=axes) <= high))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 1)


def head_outline(spec: PortraitSpec, pose: Pose, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return the radius function of the head and the coordinates that it is computed from.

    The jaw makes the lower half narrower or wider. An open mouth moves the chin down.

    Args:
        spec: the person.
        pose: the pose in every frame.
        u: head coordinates of the pixels, `[T, h, w]`.
        v: head coordinates of the pixels, `[T, h, w]`.

    Returns:
        `r - 1`, which is negative inside the head and 0 on its outline, and the normalised coordinates nu and nv with
        `r = sqrt(nu^2 + nv^2)`. Each is `[T, h, w]`.
    """
    lower = np.clip(v, 0, None)
    width = spec.head_width * (1 - spec.jaw * np.minimum(lower, 1.2) ** 2)
    height = 1 + np.where(v > 0, 0.55 * pose.mouth, 0)
    nu, nv = u / width, v / height
    return np.sqrt(nu * nu + nv * nv) - 1, nu, nv


def draw_face(canvas: Canvas, spec: PortraitSpec, pose: Pose, head: tuple[Array, Array]) -> None:
    """Paint the head in front of the body.

    Args:
        canvas: the frames; changed in place.
        spec: the person.
        pose: the pose in every frame.
        head: head coordinates (u, v) of the full canvas, from `in_head`.
    """
    reach = 1.3 * spec.head_size
    window = canvas.window(_spread(pose.y, reach, 1.35 * spec.head_size), _spread(pose.x, reach, reach))
    u, v = (part[:, window[0], window[1]] for part in head)
    px = canvas.pixel / spec.head_size
    _draw_ears(canvas, spec, pose, u, v, px, window)
    radius, nu, nv = head_outline(spec, pose, u, v)
    skin = cover(radius * spec.head_width, 1.2 * px)
    depth = np.sqrt(np.clip(1 - nu * nu - nv * nv, 0, 1))
    light = spec.light
    lambert = np.clip(nu * light[0] + nv * light[1] + depth * light[2], 0, None)
    canvas.paint_shaded(skin, spec.skin, 0.62 + 0.46 * lambert, window)
    fu, fv = _unturned(spec, pose, u, v)
    head_patch = Patch(u, v, fu, fv, radius, skin, px, window)
    width = spec.head_width
    lower = head_patch.band(0.1, 1.3, width)
    middle = head_patch.band(spec.eye_level - 0.24, spec.eye_level + 0.24, width)
    _draw_cheeks(canvas, spec, lower)
    if spec.beard > 0:
        _draw_beard(canvas, spec, pose, lower)
    _draw_eyes(canvas, spec, pose, middle)
    _draw_nose(canvas, spec, pose, head_patch.band(spec.eye_level - 0.12, 0.5, 0.8 * width))
    _draw_mouth(canvas, spec, pose, lower)
    _draw_brows(canvas, spec, pose, head_patch.band(spec.eye_level - 0.42, spec.eye_level - 0.05, width))
    _draw_front_hair(canvas, spec, head_patch)
    if spec.glasses:
        _draw_glasses(canvas, spec, middle)


def _unturned(spec: PortraitSpec, pose: Pose, u: Array, v: Array) -> tuple[Array, Array]:
    """Return the face coordinates of each pixel. The face is painted on a cylinder, so yaw shifts the angle.

    Behind the ears (an angle above 90 degrees) `fu` continues to grow beyond the head's half width.
    """
    width = spec.head_width
    depth = np.sqrt(np.clip(width**2 - u * u, 0, None))
    cosine, sine = np.cos(pose.yaw), np.sin(pose.yaw)
    fu = u * cosine - depth * sine
    behind = depth * cosine + u * sine < 0
    fu = np.where(behind, np.sign(fu) * (2 * width) - fu, fu)
    fv = v * np.cos(pose.pitch) - np.sqrt(np.clip(1.1 - v * v, 0, None)) * np.sin(pose.pitch)
    return fu, fv


def _spread(center: Array, before: float, after: float) -> Array:
    return np.concatenate([center - before, center + after])


def _draw_ears(canvas: Canvas, spec: PortraitSpec, pose: Pose, u: Array, v: Array, px: float, window: Window) -> None:
    """Paint the ears: at the sides of the cylinder, slightly behind its axis, so yaw shows one and hides the other."""
    for side in (-1.0, 1.0):
        place = side * spec.head_width * np.cos(pose.yaw) + 0.14 * np.sin(pose.yaw)
        eu, ev = (u - place) / (0.72 * spec.ear_size), (v - spec.eye_level - 0.12) / (1.25 * spec.ear_size)
        distance = (np.sqrt(eu * eu + ev * ev) - 1) * spec.ear_size
        shade = 0.84 + 0.16 * side * spec.light[0]
        ear = cover(distance, 1.2 * px)
        canvas.paint_shaded(ear, spec.skin, np.full_like(ear, shade), window)
        canvas.multiply(cover(distance + 0.07, 0.06), (0.85, 0.76, 0.74), window)


def _draw_cheeks(canvas: Canvas, spec: PortraitSpec, patch: Patch) -> None:
    fu, fv = patch.fu, patch.fv
    if spec.blush <= 0.02:
        return
    blush = falloff(np.sqrt((np.abs(fu) - 0.4) ** 2 + (fv - 0.27) ** 2), 0.13)
    canvas.multiply(blush * patch.skin * spec.blush, (1.0, 0.72, 0.72), patch.window)


def _draw_beard(canvas: Canvas, spec: PortraitSpec, pose: Pose, patch: Patch) -> None:
    """Paint the beard: everything below a line from the sideburns to under the lips, except the mouth."""
    fu, fv, skin, px, window = patch.fu, patch.fv, patch.skin, patch.px, patch.window
    line = spec.mouth_level - 0.04 - 0.75 * np.clip(np.abs(fu) - 0.27, 0, None)
    distance = np.maximum(line - fv, 0.2 - np.sqrt(fu**2 + ((fv - line) * 1.2) ** 2))
    mouth = ((fu / (spec.mouth_width + 0.03)) ** 2 + ((fv - spec.mouth_level - 0.5 * pose.mouth) / 0.15) ** 2) - 1
    beard = cover(np.maximum(distance, -0.12 * mouth), 3 * px)
    if spec.moustache:
        lift = fv - (spec.mouth_level - 0.1 + 0.5 * np.abs(fu) ** 2)
        beard = np.maximum(beard, cover(np.maximum(np.abs(lift) - 0.05, np.abs(fu) - spec.mouth_width), 2 * px))
    canvas.paint_shaded(beard * skin * spec.beard, spec.hair, 0.8 + 0.1 * np.sin(26 * fu), window)


def _draw_eyes(canvas: Canvas, spec: PortraitSpec, pose: Pose, patch: Patch) -> None:
    """Paint both eyes at once in mirrored coordinates. A blink lowers the upper lid onto the lower lid."""
    fu, fv, skin, px, window = patch.fu, patch.fv, patch.skin, patch.px, patch.window
    side = np.sign(fu)
    eu, ev = np.abs(fu) - spec.eye_spread, fv - spec.eye_level
    socket = falloff(np.sqrt(eu * eu + (1.5 * (ev + 0.05)) ** 2), 0.15)
    canvas.multiply(0.35 * socket * skin, (0.82, 0.70, 0.66), window)
    ev = ev + spec.eye_tilt * eu
    profile = 1 - (eu / spec.eye_width) ** 2
    height = spec.eye_height
    upper = (-height + pose.blink * 1.6 * height) * profile
    lower = 0.72 * height * profile
    inside = cover(np.maximum(upper - ev, ev - lower), px) * (profile > 0)
    canvas.paint(inside * skin, _EYE_WHITE, window)
    canvas.multiply(inside * cover(ev - upper - 0.035, 0.06) * skin, (0.75, 0.73, 0.76), window)
    distance = np.sqrt((eu - side * pose.gaze_x) ** 2 + (ev + 0.015 - pose.gaze_y) ** 2)
    seen = inside * skin
    dark_rim = tuple(0.45 * channel for channel in spec.iris)
    canvas.paint(seen * cover(distance - spec.iris_size, px), dark_rim, window)
    canvas.paint(seen * cover(distance - 0.8 * spec.iris_size, px), spec.iris, window)
    canvas.paint(seen * cover(distance - 0.5 * spec.iris_size, px), (0.03, 0.03, 0.04), window)
    # The catch-light is on the side of the light in both eyes, so it is not mirrored.
    spark_u = eu - side * (pose.gaze_x + 0.035 * np.sign(spec.light[0]))
    spark = np.sqrt(spark_u**2 + (ev + 0.045 - pose.gaze_y) ** 2)
    canvas.paint(seen * cover(spark - 0.026, px), (1.0, 1.0, 1.0), window)
    reach = cover(np.abs(eu) - 1.04 * spec.eye_width, px)
    lash = cover(np.abs(ev - upper + 0.012) - 0.02, px) * reach * skin
    canvas.paint(0.9 * lash, (0.10, 0.07, 0.07), window)
    rim = cover(np.abs(ev - lower) - 0.006, px) * reach * skin
    canvas.multiply(0.6 * rim, (0.62, 0.5, 0.48), window)


def _draw_brows(canvas: Canvas, spec: PortraitSpec, pose: Pose, patch: Patch) -> None:
    fu, fv, skin, px, window = patch.fu, patch.fv, patch.skin, patch.px, patch.window
    bu = np.abs(fu) - spec.eye_spread - 0.01
    along = bu / (1.18 * spec.eye_width)
    line = spec.eye_level - spec.brow_height - pose.brow - 0.05 * (1 - along * along) + spec.brow_slope * bu
    thickness = spec.brow_thickness * np.clip(1.05 - 0.45 * along, 0.2, 1.2)
    brow = cover(np.maximum(np.abs(fv - line) - thickness, np.abs(bu) - 1.18 * spec.eye_width), 1.3 * px)
    canvas.paint(0.85 * brow * skin, tuple(0.7 * channel for channel in spec.hair), window)


def _draw_nose(canvas: Canvas, spec: PortraitSpec, pose: Pose, patch: Patch) -> None:
    """Paint the nose. It is in front of the face, so it moves further than the rest when the head turns."""
    fu, fv, skin, px, window = patch.fu, patch.fv, patch.skin, patch.px, patch.window
    nu = fu - 0.16 * np.sin(pose.yaw)
    tip = spec.eye_level + spec.nose_length + 0.06 + 0.1 * np.sin(pose.pitch)
    side = -1.0 if spec.light[0] > 0 else 1.0
    rise = np.clip((fv - spec.eye_level + 0.1) / (spec.nose_length + 0.16), 0, 1)
    bridge = (fv < tip) * (fv > spec.eye_level - 0.1)
    edge = nu - side * (0.035 + 0.55 * spec.nose_width * rise)
    canvas.multiply(0.42 * falloff(edge, 0.05) * bridge * rise * skin, (0.74, 0.6, 0.56), window)
    canvas.multiply(0.5 * falloff(nu + side * 0.01, 0.035) * bridge * rise * skin, (1.16, 1.16, 1.18), window)
    below = np.sqrt((nu / (1.25 * spec.nose_width)) ** 2 + ((fv - tip - 0.03) / 0.055) ** 2) - 1
    canvas.multiply(0.62 * cover(0.1 * below, 0.09) * skin, (0.74, 0.58, 0.55), window)
    ball = np.sqrt((nu / spec.nose_width) ** 2 + ((fv - tip + 0.035) / 0.07) ** 2) - 1
    canvas.multiply(0.6 * cover(0.1 * ball, 0.09) * skin, (1.1, 1.05, 1.03), window)
    nostril = np.sqrt(((np.abs(nu) - 0.6 * spec.nose_width) / 0.036) ** 2 + ((fv - tip - 0.025) / 0.022) ** 2) - 1
    canvas.multiply(0.8 * cover(0.028 * nostril, px) * skin, (0.4, 0.27, 0.25), window)


def _draw_mouth(canvas: Canvas, spec: PortraitSpec, pose: Pose, patch: Patch) -> None:
    """Paint the lips around an opening with teeth, dark background and tongue. Speech opens and rounds the mouth."""
    fu, fv, skin, px, window = patch.fu, patch.fv, patch.skin, patch.px, patch.window
    width = spec.mouth_width * (1 - 0.9 * pose.rounding - 0.35 * pose.mouth)
    along = fu / width
    profile = np.clip(1 - along * along, 0, None)
    mv = fv - spec.mouth_level + spec.smile * along * along - 0.12 * pose.mouth
    bow = 1 - 0.35 * falloff(fu, 0.05)
    open_up, open_down = 0.35 * pose.mouth * profile, (0.75 * pose.mouth) * profile
    top, bottom = -open_up - spec.lip_upper * profile**0.7 * bow, open_down + spec.lip_lower * profile**0.8
    inside = cover(np.abs(along) * width - width, px) * skin
    lips = cover(np.maximum(top - mv, mv - bottom), px) * inside
    shade = 1.0 - 0.16 * cover(mv, 0.03) + 0.14 * falloff(mv - open_down - 0.5 * spec.lip_lower, 0.022)
    canvas.paint_shaded(lips, spec.lips, shade, window)
    canvas.multiply(0.3 * falloff(mv - bottom - 0.05, 0.04) * (profile > 0.3) * skin, (0.8, 0.7, 0.68), window)
    gap = np.maximum(-open_up - 0.012 - mv, mv - open_down - 0.012)
    mouth = cover(gap, px) * inside
    canvas.paint(mouth, _MOUTH_DARK, window)
    wide = np.clip(pose.mouth / 0.06, 0, 1)
    tongue = np.sqrt((fu / (0.62 * width)) ** 2 + ((mv - open_down - 0.02) / (0.4 * pose.mouth + 0.02)) ** 2) - 1
    canvas.paint(mouth * wide * cover(0.05 * tongue, px), _TONGUE, window)
    teeth = cover(mv + open_up - 0.42 * pose.mouth * profile, px) * cover(np.abs(along) - 0.86, 0.08)
    canvas.paint(mouth * wide * teeth, _TEETH, window)


def _draw_front_hair(canvas: Canvas, spec: PortraitSpec, patch: Patch) -> None:
    """Paint the hair above the hairline, inside an outline slightly larger than the skull.

    The hairline turns with the face.
    """
    u, v, fu, fv, radius, px, window = patch.u, patch.v, patch.fu, patch.fv, patch.radius, patch.px, patch.window
    style = spec.hair_style
    line = np.full_like(fu, spec.hairline) + 0.35 * fu * fu
    sideburn = 0.02
    if style == "bald":
        return
    if style == "bangs":
        line = np.maximum(line, spec.eye_level - spec.brow_height - 0.06 + 0.02 * np.sin(24 * fu))
        sideburn = 0.35
    elif style == "parted":
        line = spec.hairline - 0.06 + 0.75 * np.clip(np.abs(fu - 0.5 * spec.hair_part), 0, 0.7) ** 1.3
        sideburn = 0.3
    elif style == "long":
        line = spec.hairline - 0.1 + 0.95 * np.clip(np.abs(fu - 0.4 * spec.hair_part), 0, 0.8) ** 1.2
        sideburn = 1.1
    elif style == "short":
        line = line + 0.22 * spec.hair_part * fu + 0.015 * np.sin(17 * fu)
    volume = spec.hair_volume
    outline = radius + 1 - volume
    if style in ("short", "bun"):
        # Short or tied hair is flat below the temples.
        outline = radius - (volume - 1) * np.clip(0.4 - 1.6 * v, 0, 1)
    if style == "curly":
        angle = np.arctan2(v + 0.2, u)
        outline = outline - 0.05 - 0.035 * np.sin(13 * angle)
        line = line + 0.025 * np.sin(20 * fu)
        sideburn = 0.2
    # At the temples the hair continues down in front of the ears. The style determines how far.
    edge = (np.abs(fu) / spec.head_width) - 0.86
    nape = 2.5 * np.clip(np.abs(fu) / spec.head_width - 1.02, 0, 0.25)
    temple = np.maximum(-0.6 * edge, fv - sideburn - nape)
    region = np.minimum(fv - line, temple)
    hair = cover(np.maximum(region, outline * spec.head_width), 1.3 * px)
    streak = 0.055 * np.sin(21 * fu + 5 * fv) + 0.035 * np.sin(37 * fu - 3 * fv)
    gloss = falloff(radius + 0.3 - 0.25 * (u * spec.light[0]), 0.11) * 0.32
    lit = 0.80 + 0.22 * (u * spec.light[0] - (v + 0.4) * 0.6 * spec.light[1] * -1) + streak + gloss
    shadow = 0.3 * falloff(np.clip(region, 0, None), 0.045) * (radius < 0) * (1 - hair)
    canvas.multiply(shadow, (0.72, 0.6, 0.56), window)
    canvas.paint_shaded(hair, spec.hair, lit.astype(np.float32), window)


def _draw_glasses(canvas: Canvas, spec: PortraitSpec, patch: Patch) -> None:
    fu, fv, px, window = patch.fu, patch.fv, patch.px, patch.window
    gu, gv = (np.abs(fu) - spec.eye_spread) / 0.245, (fv - spec.eye_level - 0.01) / 0.2
    ring = np.sqrt(gu * gu + gv * gv) if spec.round_glasses else (gu**4 + gv**4) ** 0.25
    lens = (ring - 1) * 0.21
    on_head = cover(spec.head_width * patch.radius - 0.02, px)
    canvas.paint(0.10 * cover(lens, px) * on_head, (0.85, 0.92, 1.0), window)
    bridge = np.maximum(np.abs(fv - spec.eye_level + 0.02) - 0.018, np.abs(fu) - (spec.eye_spread - 0.22))
    arms = np.maximum(np.abs(fv - spec.eye_level + 0.03) - 0.018, spec.eye_spread + 0.23 - np.abs(fu))
    frame = np.maximum(cover(np.abs(lens) - 0.02, px), np.maximum(cover(bridge, px), cover(arms, px)))
    canvas.paint(0.95 * frame * on_head, spec.frame_color, window)

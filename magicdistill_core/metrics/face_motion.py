"""Measures of a talking face, from curves of its landmarks: blinks, mouth, head.

All functions take one value per frame and leave out frames without a face, which are NaN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# An eye is closing where its opening falls so far below its usual opening, as a share of it. It is shut from the second
# share on.
_CLOSING, _SHUT = 0.4, 0.7
# A blink lasts 0.1 to 0.4 s (Stern et al., 1984). One frame less and a slow end are allowed. Longer is closed.
_SHORTEST_BLINK, _LONGEST_BLINK = 0.06, 0.7
# The usual opening is this quantile: people have their eyes open most of the time, and wide open rarely.
_OPEN_QUANTILE = 0.75
# Speech opens the mouth 2 to 7 times a second (Chandrasekaran et al., 2009).
_SPEECH_HZ = (2.0, 7.0)
# An opening counts if it is so much wider than the closings around it, as a share of the mouth's width.
_OPENING = 0.06


@dataclass(frozen=True)
class Blinks:
    """The blinks of a video.

    Attributes:
        frames: the frame of each blink at which the eyes are closest.
        completeness: how far the eyes close in each blink: 0 is open, 1 is shut.
        rate: blinks per minute; None without a face.
        closed: share of the frames with a face in which the eyes are shut and no blink is going on.
    """

    frames: list[int]
    completeness: list[float]
    rate: float | None
    closed: float


def find_blinks(opening: Tensor, fps: float) -> Blinks:
    """Find blinks in the opening of the eyes.

    Args:
        opening: eye aspect ratio of each frame, the mean of both eyes (Soukupova and Cech, 2016), `[T]`.
        fps: frames per second.
    """
    seen = opening.isfinite()
    if not seen.any():
        return Blinks([], [], None, 0.0)
    usual = torch.quantile(opening[seen].double(), _OPEN_QUANTILE)
    closure = torch.where(seen, (1 - opening.double() / usual).clamp(0, 1), torch.nan)
    frames, completeness, in_blinks = [], [], torch.zeros(len(opening), dtype=torch.bool)
    for first, last in _runs(closure > _CLOSING):
        seconds = (last - first + 1) / fps
        if not _SHORTEST_BLINK <= seconds <= _LONGEST_BLINK:
            continue
        deepest = first + int(closure[first : last + 1].argmax())
        frames.append(deepest)
        completeness.append(float(closure[deepest]))
        in_blinks[first : last + 1] = True
    closed = float(((closure > _SHUT) & ~in_blinks).sum() / seen.sum())
    return Blinks(frames, completeness, 60 * fps * len(frames) / int(seen.sum()), closed)


@dataclass(frozen=True)
class Mouth:
    """How a mouth moves.

    Attributes:
        opening: mean opening, as a share of the mouth's width; None without a face.
        range: the 95 % quantile of the opening minus the 5 % quantile.
        per_second: openings per second.
        speech: share of the opening's variance at 2 to 7 Hz, the rhythm of syllables; None if the video is shorter
            than a second or the mouth does not move.
    """

    opening: float | None
    range: float | None
    per_second: float | None
    speech: float | None


def measure_mouth(opening: Tensor, fps: float) -> Mouth:
    """Measure the opening of a mouth over time.

    Args:
        opening: distance of the lips divided by the mouth's width, `[T]`.
        fps: frames per second.
    """
    seen = opening[opening.isfinite()].double()
    if not len(seen):
        return Mouth(None, None, None, None)
    low, high = torch.quantile(seen, torch.tensor([0.05, 0.95], dtype=torch.float64))
    count = _openings(seen)
    return Mouth(float(seen.mean()), float(high - low), count * fps / len(seen), _speech_share(seen, fps))


def _openings(opening: Tensor) -> int:
    """Return how often the mouth opens: rises by at least `_OPENING` after it fell by as much."""
    count, rising, lowest, highest = 0, True, float(opening[0]), float(opening[0])
    for value in opening.tolist():
        lowest, highest = min(lowest, value), max(highest, value)
        if rising and value - lowest >= _OPENING:
            count, rising, highest = count + 1, False, value
        elif not rising and highest - value >= _OPENING:
            rising, lowest = True, value
    return count


def _speech_share(opening: Tensor, fps: float) -> float | None:
    if len(opening) < fps or float(opening.std()) < 1e-3:
        return None
    window = torch.hann_window(len(opening), periodic=False, dtype=torch.float64)
    power = torch.fft.rfft((opening - opening.mean()) * window).abs().square()
    hertz = torch.fft.rfftfreq(len(opening), 1 / fps, dtype=torch.float64)
    low, high = _SPEECH_HZ
    total = power[1:].sum()
    return float(power[(hertz >= low) & (hertz <= high)].sum() / total) if total > 0 else None


@dataclass(frozen=True)
class Head:
    """How a head moves, in degrees.

    Attributes:
        yaw: range of turning left and right, between the 5 % and the 95 % quantile; None without a face.
        pitch: range of nodding.
        roll: range of tilting.
        speed: mean angle between the poses of neighbouring frames, in degrees per second.
        jerk: largest such angle, in degrees: a jump.
    """

    yaw: float | None
    pitch: float | None
    roll: float | None
    speed: float | None
    jerk: float | None


def measure_head(rotations: Tensor, fps: float) -> Head:
    """Measure how a head turns.

    Args:
        rotations: rotation matrices of the head, `[T, 3, 3]`, NaN without a face. The axes are right, up, and towards
            the camera.
        fps: frames per second.
    """
    rotations = rotations.double()
    seen = rotations.isfinite().all(2).all(1)
    if not seen.any():
        return Head(None, None, None, None, None)
    angles = euler_angles(rotations[seen])
    low, high = torch.quantile(angles, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    yaw, pitch, roll = (high - low).tolist()
    both = seen[1:] & seen[:-1]
    if not both.any():
        return Head(yaw, pitch, roll, None, None)
    turned = rotation_angle(rotations[1:][both], rotations[:-1][both])
    return Head(yaw, pitch, roll, float(turned.mean()) * fps, float(turned.max()))


def euler_angles(rotations: Tensor) -> Tensor:
    """Return yaw, pitch and roll in degrees, `[T, 3]`, of `R = R_y(yaw) R_x(pitch) R_z(roll)`.

    Args:
        rotations: `[T, 3, 3]`.
    """
    yaw = torch.atan2(rotations[:, 0, 2], rotations[:, 2, 2])
    pitch = torch.asin((-rotations[:, 1, 2]).clamp(-1, 1))
    roll = torch.atan2(rotations[:, 1, 0], rotations[:, 1, 1])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], dim=1))


def rotation_angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle of the rotation from `a` to `b`, in degrees, `[T]`.

    It is computed from the difference of the matrices, `|a - b| = sqrt(8) sin(angle / 2)`, which stays exact for small
    angles.

    Args:
        a: rotation matrices, `[T, 3, 3]`.
        b: the same shape.
    """
    return torch.rad2deg(2 * torch.asin(((a - b).flatten(1).norm(dim=1) / 8**0.5).clamp(max=1)))


def _runs(true: Tensor) -> list[tuple[int, int]]:
    """Return the first and the last place of each run of true values."""
    runs, start = [], None
    for place, value in enumerate([*true.tolist(), False]):
        if value and start is None:
            start = place
        elif not value and start is not None:
            runs.append((start, place - 1))
            start = None
    return runs

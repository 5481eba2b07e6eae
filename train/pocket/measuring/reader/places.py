"""Where the parts of a face are in the picture, for the painting of breakages."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from magicdistill_core.pocket.portrait import PortraitSpec
from magicdistill_core.pocket.pose import Pose

# The radius of the cylinder that pitch turns, squared; see `face._unturned`.
_PITCH_RADIUS_SQUARED = 1.1
_OUTLINE_POINTS = 64


@dataclass(frozen=True)
class Places:
    """Positions (x, y) and lengths in one frame, in pixels. x grows to the right and y downwards.

    Attributes:
        left_eye, right_eye: centres of the eyes; left and right are those of the picture.
        mouth: centre of the mouth.
        head: centre of the head.
        eye_radii: half width and half height of an open eye.
        mouth_radii: half width and half height of the mouth with its lips.
        head_radii: half width and half height of the head without hair.
        roll: rotation of the head in radians.
        outline: points along the hair and the jaw, `[64, 2]`.
    """

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    mouth: tuple[float, float]
    head: tuple[float, float]
    eye_radii: tuple[float, float]
    mouth_radii: tuple[float, float]
    head_radii: tuple[float, float]
    roll: float
    outline: Tensor


def places_of(spec: PortraitSpec, pose: Pose, size: int) -> list[Places]:
    """Return the places in every frame of a clip.

    Args:
        spec: the person.
        pose: the pose in every frame.
        size: width and height of the picture in pixels.
    """
    unit = spec.head_size * size / 2
    found = []
    for frame in range(pose.x.shape[0]):
        opening = float(pose.mouth[frame, 0, 0])

        def pixel(u: np.ndarray | float, v: np.ndarray | float, frame: int = frame) -> np.ndarray:
            return _in_pixels(spec, pose, frame, size, u, v)

        def on_face(fu: float, fv: float, frame: int = frame) -> tuple[float, float]:
            x, y = _in_pixels(spec, pose, frame, size, *_turned(spec, pose, frame, fu, fv))
            return float(x), float(y)

        middle = pixel(0.0, 0.0)
        found.append(
            Places(
                left_eye=on_face(-spec.eye_spread, spec.eye_level),
                right_eye=on_face(spec.eye_spread, spec.eye_level),
                mouth=on_face(0.0, spec.mouth_level + 0.3 * opening),
                head=(float(middle[0]), float(middle[1])),
                eye_radii=(unit * spec.eye_width, unit * spec.eye_height),
                mouth_radii=(unit * spec.mouth_width, unit * (0.5 * (spec.lip_upper + spec.lip_lower) + 0.6 * opening)),
                head_radii=(unit * spec.head_width, unit),
                roll=float(pose.roll[frame, 0, 0]),
                outline=torch.from_numpy(pixel(*_outline(spec)).T).float(),
            )
        )
    return found


def _turned(spec: PortraitSpec, pose: Pose, frame: int, fu: float, fv: float) -> tuple[float, float]:
    """Return the head coordinates of a point of the face: the inverse of the renderer's `_unturned`."""
    yaw, pitch = float(pose.yaw[frame, 0, 0]), float(pose.pitch[frame, 0, 0])
    tall = np.sqrt(_PITCH_RADIUS_SQUARED)
    u = spec.head_width * np.sin(np.arcsin(fu / spec.head_width) + yaw)
    v = tall * np.sin(np.arcsin(fv / tall) + pitch)
    return float(u), float(v)


def _in_pixels(
    spec: PortraitSpec, pose: Pose, frame: int, size: int, u: np.ndarray | float, v: np.ndarray | float
) -> np.ndarray:
    """Return (x, y) in pixels for head coordinates: the inverse of `in_head`. Pixel centres are whole numbers."""
    roll = float(pose.roll[frame, 0, 0])
    x = float(pose.x[frame, 0, 0]) + spec.head_size * (u * np.cos(roll) - v * np.sin(roll))
    y = float(pose.y[frame, 0, 0]) + spec.head_size * (u * np.sin(roll) + v * np.cos(roll))
    return np.stack([np.asarray((part + 1) * size / 2 - 0.5) for part in (x, y)])


def _outline(spec: PortraitSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the hair and the jaw in head coordinates."""
    angle = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    volume = np.where(np.sin(angle) < 0, spec.hair_volume if spec.hair_style != "bald" else 1.0, 1.0)
    v = volume * np.sin(angle)
    width = spec.head_width * (1 - spec.jaw * np.clip(v, 0, 1.2) ** 2)
    return volume * width * np.cos(angle), v

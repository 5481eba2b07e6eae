"""The position of the head in every frame of a pocket portrait, and the coordinates that move with the head."""

from dataclasses import dataclass

import numpy as np

from .painting import Array, Canvas
from .portrait import PortraitSpec


@dataclass(frozen=True)
class Pose:
    """Position of the head and state of the face per frame, each `[T, 1, 1]`. Units as in `portrait`."""

    x: Array
    y: Array
    roll: Array
    yaw: Array
    pitch: Array
    gaze_x: Array
    gaze_y: Array
    brow: Array
    mouth: Array
    rounding: Array
    blink: Array


def in_head(canvas: Canvas, pose: Pose, spec: PortraitSpec) -> tuple[Array, Array]:
    """Return the head coordinates (u, v) of every pixel in every frame, each `[T, H, W]`.

    They follow position, roll and size of the head, but not yaw and pitch.

    Args:
        canvas: the frames.
        pose: the pose in every frame.
        spec: the person, whose head size is the unit.
    """
    dx, dy = canvas.shifted(pose.x, pose.y)
    cosine, sine = np.cos(pose.roll) / spec.head_size, np.sin(pose.roll) / spec.head_size
    return dx * cosine + dy * sine, dy * cosine - dx * sine

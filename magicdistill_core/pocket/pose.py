"""Where the head of a pocket portrait is in every frame, and the coordinates that move with it."""

from dataclasses import dataclass

import numpy as np

from .painting import Array, Canvas
from .portrait import PortraitSpec


@dataclass(frozen=True)
class Pose:
    """Where the head is and what the face does, each `[T, 1, 1]`. Units as in `portrait`."""

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
    """Head coordinates (u, v) of every pixel of every frame: moved, rolled and scaled, not turned."""
    dx, dy = canvas.shifted(pose.x, pose.y)
    cosine, sine = np.cos(pose.roll) / spec.head_size, np.sin(pose.roll) / spec.head_size
    return dx * cosine + dy * sine, dy * cosine - dx * sine

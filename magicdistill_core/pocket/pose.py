"""The position of the head in every frame of a pocket portrait, and the coordinates that move with the head."""

from dataclasses import dataclass

import numpy as np

from .motion import eyelid_closure, mouth_opening, yaw
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


def pose_at(spec: PortraitSpec, seconds: np.ndarray) -> Pose:
    """Evaluate all motions of a portrait.

    Args:
        spec: the person with the beginning and the future of the motion.
        seconds: times of the frames, `[T]`.
    """
    start, future = spec.beginning, spec.future

    def column(values: np.ndarray) -> Array:
        return values.astype(np.float32).reshape(-1, 1, 1)

    return Pose(
        x=column(spec.center[0] + future.shift_x.at(seconds)),
        y=column(spec.center[1] + future.shift_y.at(seconds)),
        roll=column(start.roll + future.roll.at(seconds)),
        yaw=column(yaw(start, future, seconds)),
        pitch=column(start.pitch + future.pitch.at(seconds)),
        gaze_x=column(start.gaze_x + future.gaze_x.at(seconds)),
        gaze_y=column(start.gaze_y + future.gaze_y.at(seconds)),
        brow=column(start.brow + future.brow.at(seconds)),
        mouth=column(mouth_opening(start, future, seconds)),
        rounding=column(start.rounding + future.rounding.at(seconds)),
        blink=column(eyelid_closure(future, seconds)),
    )


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

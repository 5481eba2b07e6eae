"""What the reader reads, and the true values of a rendered frame.

The *motion* are the quantities that change within a clip. The *identity* are the attributes of the person, which do
not. Units are those of the renderer (`magicdistill_core.pocket.portrait`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from magicdistill_core.pocket.portrait import HAIR_STYLES, PortraitSpec, sample_portrait
from magicdistill_core.pocket.pose import Pose, pose_at
from magicdistill_core.pocket.render import DEFAULT_FRAMES, frame_times

MOTION = ("yaw", "pitch", "roll", "gaze_x", "gaze_y", "mouth", "blink")
# The quantities that change their sign in the mirrored picture.
MIRRORED = ("yaw", "roll", "gaze_x")
# The quantities that a broken part of the face hides.
SPOILED = {"": (), "eyes": ("gaze_x", "gaze_y", "blink"), "mouth": ("mouth",), "face": MOTION}
# Eyes that are closed further than this show no gaze.
GAZE_SEEN = 0.5

_COLORS = ("skin", "hair", "iris", "lips")
_LENGTHS = (
    *("head_size", "head_width", "jaw", "hairline", "eye_spread", "eye_width", "eye_height", "eye_tilt", "eye_level"),
    *("iris_size", "brow_height", "brow_thickness", "brow_slope", "nose_length", "nose_width", "ear_size"),
    *("mouth_level", "mouth_width", "lip_upper", "lip_lower", "smile", "beard"),
)
_FLAGS = ("moustache", "glasses")
IDENTITY = (
    *(f"{name} {channel}" for name in _COLORS for channel in ("red", "green", "blue")),
    *_LENGTHS,
    *_FLAGS,
    *(f"hair style {style}" for style in HAIR_STYLES),
)


def motion_of(pose: Pose) -> Tensor:
    """Return the true motion of every frame, `[T, 7]`, in the order of `MOTION`.

    Args:
        pose: the pose in every frame.
    """
    return torch.from_numpy(np.stack([getattr(pose, name).reshape(-1) for name in MOTION], axis=1)).float()


def identity_of(spec: PortraitSpec) -> Tensor:
    """Return the true attributes of a person, `[D]`, in the order of `IDENTITY`.

    Args:
        spec: the person.
    """
    values = [channel for name in _COLORS for channel in getattr(spec, name)]
    values += [float(getattr(spec, name)) for name in (*_LENGTHS, *_FLAGS)]
    values += [float(spec.hair_style == style) for style in HAIR_STYLES]
    return torch.tensor(values)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of motion `[7]` and identity `[D]` over people and frames."""

    motion_mean: Tensor
    motion_std: Tensor
    identity_mean: Tensor
    identity_std: Tensor


def spread_of(people: int) -> Spread:
    """Return the spread of all quantities over the clips of the renderer's first people.

    Args:
        people: number of people, at least 2. With fewer than about 100, a rare attribute may not vary.
    """
    specs = [sample_portrait(np.random.default_rng(seed)) for seed in range(people)]
    motion = torch.cat([motion_of(pose_at(spec, frame_times(DEFAULT_FRAMES))) for spec in specs])
    identity = torch.stack([identity_of(spec) for spec in specs])
    return Spread(motion.mean(dim=0), motion.std(dim=0), identity.mean(dim=0), identity.std(dim=0))

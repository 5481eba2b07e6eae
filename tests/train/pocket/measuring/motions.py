"""True motion of portraits that follow directions, without rendering."""

from collections.abc import Sequence

import torch
from torch import Tensor

from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import DEFAULT_FRAMES, frame_times, portrait
from train.pocket.measuring.reader.quantities import motion_of


def true_motion(seeds: Sequence[int], told: Sequence[Direction]) -> Tensor:
    """Motion `[N, 17, 7]` of the portraits that `render_clips(seeds, ..., directions=told)` draws."""
    times = frame_times(DEFAULT_FRAMES)
    return torch.stack(
        [motion_of(pose_at(portrait(seed, 0, direction), times)) for seed, direction in zip(seeds, told, strict=True)]
    )

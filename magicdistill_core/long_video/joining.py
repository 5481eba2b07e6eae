"""How a segment continues the one before it: its colours follow the portrait's, and the overlap is cross-faded."""

from dataclasses import dataclass

import torch
from torch import Tensor

# The contrast of a channel is changed at most by this factor. More would be visible, and no longer be drift.
_MOST_GAIN = 1.25
_SMALLEST_DEVIATION = 1e-3
# The colours at a segment's end are measured on this share of its frames.
_LATE = 0.15


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of each colour channel over the pixels, `[3]` each, of RGB in [0, 1]."""

    mean: Tensor
    deviation: Tensor


def colours_of(frames_THWC: Tensor) -> Colours:
    """Measure the colours of frames `[T, H, W, 3]` in [0, 1], over all their pixels."""
    pixels = frames_THWC.float().reshape(-1, 3)
    return Colours(pixels.mean(dim=0), pixels.std(dim=0, correction=0))


def late_frames(count: int) -> int:
    """Return how many of `count` frames are its last 15 %, at least one."""
    return max(1, round(_LATE * count))


def matched(frames_THWC: Tensor, anchor: Colours) -> Tensor:
    """Let the colours of a segment return to those of the portrait at its end.

    A correction changes each channel linearly, so that mean and deviation of the segment's last frames become those of
    the portrait. It is not applied to the first frame, and grows evenly from frame to frame. So nothing jumps at the
    join, and the next segment starts from corrected colours.

    Args:
        frames_THWC: the frames of a segment, `[T, H, W, 3]` in [0, 1].
        anchor: the colours of the portrait.
    """
    late = colours_of(frames_THWC[-late_frames(len(frames_THWC)) :])
    gain = anchor.deviation / late.deviation.clamp(min=_SMALLEST_DEVIATION)
    gain = gain.clamp(1 / _MOST_GAIN, _MOST_GAIN)
    share = torch.linspace(0, 1, len(frames_THWC)).view(-1, 1, 1, 1)
    corrected = (frames_THWC - late.mean) * gain + anchor.mean
    return torch.lerp(frames_THWC, corrected, share).clamp(0, 1)


def cross_fade(before_NHWC: Tensor, after_NHWC: Tensor) -> Tensor:
    """Blend the frames that two segments share.

    Args:
        before_NHWC: the last N frames of a segment, `[N, H, W, 3]`.
        after_NHWC: the frames of the next segment at the same time.

    Returns:
        `[N, H, W, 3]`; the share of the next segment grows evenly, from 1 / (N + 1) to N / (N + 1).
    """
    count = len(before_NHWC)
    share = torch.arange(1, count + 1).view(-1, 1, 1, 1) / (count + 1)
    return torch.lerp(before_NHWC, after_NHWC, share)

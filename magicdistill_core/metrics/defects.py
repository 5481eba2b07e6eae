"""Defects that averages do not show: frozen, looping and flashing video, and frames in the wrong order.

All are found in the differences of frames. Frames are compared as small grey pictures, so that the noise of a
codec counts little.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Mean absolute difference of small grey pictures, in levels of 0 to 255. A video encoder repeats a picture to about
# 0.05 levels; a person who sits still moves by 0.2 and more.
_STILL = 0.08
_STILL_SECONDS = 0.5
# A flash: a frame is brighter or darker than both neighbours by so many levels, and by so many times the usual change.
_FLASH_LEVELS, _FLASH_TIMES = 6.0, 6.0
# A loop: what frames differ from those one period earlier, as a share of what any two frames differ, and as a share of
# what frames differ that are half a period apart. Loops that a codec has stored have up to 0.22.
_LOOP_SHARE = 0.3
_LOOP_SECONDS = 0.4
# Each frame is compared with each other one. In longer videos, only so many first frames are.
_MOST_COMPARED = 2000
# Videos in which any two frames differ by less have no order that could be found.
_LEAST_CHANGE = 0.5


@dataclass(frozen=True)
class Defects:
    """What was found in a video.

    Attributes:
        frozen: share of the frames that belong to a still part of at least half a second.
        frozen_from: number of the first frame of the longest still part; None if there is none.
        flashes: numbers of the frames that flash.
        period: frames after which the video repeats itself; None if it does not.
        disorder: what neighbouring frames differ, divided by what any two frames differ. Steady motion has about 0.2,
            frames in random order have 1.
    """

    frozen: float
    frozen_from: int | None
    flashes: list[int]
    period: int | None
    disorder: float


def find_defects(small_THW: Tensor, fps: float) -> Defects:
    """Look for still parts, flashes, a period and disorder.

    Args:
        small_THW: the frames as small grey pictures in levels of 0 to 255, `[T, H, W]`.
        fps: frame rate.
    """
    frames = small_THW.float().flatten(1)
    if len(frames) < 2:
        return Defects(0.0, None, [], None, 0.0)
    steps = (frames[1:] - frames[:-1]).abs().mean(1)
    frozen, start = _still_parts(steps, max(2, round(_STILL_SECONDS * fps)))
    compared = frames[:_MOST_COMPARED]
    differences = torch.cdist(compared, compared, p=1) / frames.shape[1]
    usual = float(differences.sum() / (len(compared) * (len(compared) - 1)))
    period, disorder = None, 0.0
    if usual >= _LEAST_CHANGE:
        period = None if frozen > 0.5 else _period(differences, usual, fps)
        disorder = float(steps[: len(compared) - 1].mean()) / usual
    return Defects(frozen, start, _flashes(frames), period, disorder)


def _still_parts(steps: Tensor, least: int) -> tuple[float, int | None]:
    count, total, longest, start = 0, 0, 0, None
    for place, still in enumerate([*(steps < _STILL).tolist(), False]):
        if still:
            count += 1
            continue
        if count >= least:
            total += count + 1
            if count > longest:
                longest, start = count, place - count
        count = 0
    return min(1.0, total / (len(steps) + 1)), start


def _flashes(frames: Tensor) -> list[int]:
    light = frames.mean(1)
    if len(light) < 3:
        return []
    before, after = light[1:-1] - light[:-2], light[1:-1] - light[2:]
    height = torch.minimum(before.abs(), after.abs())
    usual = (light[1:] - light[:-1]).abs().median().clamp(min=0.2)
    found = (before.sign() == after.sign()) & (height > _FLASH_LEVELS) & (height > _FLASH_TIMES * usual)
    return (found.nonzero().flatten() + 1).tolist()


def _period(differences: Tensor, usual: float, fps: float) -> int | None:
    """Return the shortest period after which the frames repeat, if at least two periods are there."""
    count = len(differences)
    shortest = max(2, round(_LOOP_SECONDS * fps))
    errors = {lag: float(differences.diagonal(lag).mean()) for lag in range(shortest, count // 2 + 1)}
    close = [lag for lag, error in errors.items() if error < _LOOP_SHARE * usual]
    if not close:
        return None
    # Neighbours of the period are close too: take the best of the first group.
    group = [lag for lag in close if lag - close[0] < shortest]
    best = min(group, key=lambda lag: errors[lag])
    # A person who hardly moves is close to itself at every lag. A loop is not, half a period away.
    away = float(differences.diagonal(max(1, best // 2)).mean())
    return best if errors[best] < _LOOP_SHARE * away else None

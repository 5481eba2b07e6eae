"""Cutting a video into the windows of a dataset."""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import VideoError
from magicdistill_core.media.video import read_runs, resize_crop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowGeometry:
    """How a video is cut: windows of `frames` frames at `fps` frames per second, a new one every `stride` frames.

    Attributes:
        frames: frames of a window, 4n + 1.
        height: height in pixels, to which frames are resized and cropped.
        width: width in pixels.
        fps: frames per second, to which the video is resampled before it is cut.
        stride: frames from the start of one window to the start of the next.
    """

    frames: int
    height: int
    width: int
    fps: float
    stride: int


def windows(path: Path, geometry: WindowGeometry) -> Iterator[tuple[int, Tensor]]:
    """Yield the windows of a video one after another.

    A window never contains a gap, because a picture that is repeated until the next one looks like frozen motion. After
    a gap, the next window begins with the first frame (`read_runs`). A window that shows one frame of the file all the
    time is left out.

    Args:
        path: the video file.
        geometry: how the video is cut.

    Yields:
        The number of the window's first frame after resampling, and its frames `[T, H, W, 3]` in uint8.

    Raises:
        VideoError: if the video is unreadable, damaged, or has no window.
    """
    video = read_runs(path, geometry.fps)
    buffer: deque[tuple[int, Tensor]] = deque()  # number of the source frame, resized frame
    number = run = first = length = longest = used = still = 0
    source, resized = -1, torch.empty(0)
    for frame in video.frames:
        if frame.run != run:
            buffer.clear()
            run, first, length = frame.run, number, 0
        if number >= first:  # a stride longer than a window skips frames
            if frame.source != source:  # a repeated frame is resized once
                source, resized = frame.source, resize_crop(frame.pixels, geometry.height, geometry.width)
            buffer.append((source, resized))
        number, length = number + 1, length + 1
        longest = max(longest, length)
        if len(buffer) == geometry.frames:
            if geometry.frames > 1 and buffer[0][0] == buffer[-1][0]:
                still += 1
            else:
                yield first, torch.stack([pixels for _, pixels in buffer])
                used += 1
            first += geometry.stride
            for _ in range(min(geometry.stride, len(buffer))):
                buffer.popleft()
    for note in video.notes:
        logger.warning("%s", note)
    if still and used:
        logger.warning("%s: %d windows were left out, because each shows only one frame of the file", path, still)
    if not used:
        raise VideoError(_nothing(path, geometry, longest, still))


def _nothing(path: Path, geometry: WindowGeometry, longest: int, still: int) -> str:
    if still:
        return (
            f"{path} has too few frames per second: each of its {still} windows of {geometry.frames} frames at "
            f"{geometry.fps:g} fps shows only one picture. Use a video with a higher frame rate, or a lower fps."
        )
    return (
        f"{path} is too short: it has {longest} frames at {geometry.fps:g} fps without a gap, expected at least "
        f"{geometry.frames}. Use longer clips, fewer frames or a higher frame rate."
    )

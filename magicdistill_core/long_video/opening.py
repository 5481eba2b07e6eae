"""The video that a long video continues: it is written again in the size and rate of the segments."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import VideoError
from ..hashes import tensors_sha256
from ..media.video import resize_crop
from ..media.video_writing import video_writer
from .plan import Plan


@dataclass(frozen=True)
class Opening:
    """A video that is continued.

    Attributes:
        part: its frames as an mp4 file, without the last ones, which are cross-faded into the first segment.
        frames: number of frames in `part`.
        tail: its last frames, `[N, H, W, 3]` in [0, 1], from which the first segment starts.
        key: what identifies these frames.
    """

    part: Path
    frames: int
    tail: Tensor
    key: str


def write_opening(
    frames: Iterable[Tensor], plan: Plan, height: int, width: int, fps: Fraction, crf: float, folder: Path
) -> Opening:
    """Write the video that is continued as the first part of a long video, frame by frame.

    Args:
        frames: its frames `[H, W, 3]`, uint8 or in [0, 1], at the rate `fps`.
        plan: the plan of the segments after it.
        height: height of the segments in pixels; frames are cropped and resized to it.
        width: width of the segments.
        fps: frames per second.
        crf: quality of the file.
        folder: the folder of the segments.

    Raises:
        VideoError: if the video has fewer frames than a join needs, or the file cannot be written.
    """
    last: deque[Tensor] = deque()
    part = folder / f"0000-crf{crf:g}.mp4"
    count = 0
    with video_writer(part, fps, crf=crf) as writer:
        for frame in frames:
            pixels = frame.float() / 255 if frame.dtype == torch.uint8 else frame.float()
            last.append(resize_crop(pixels.clamp(0, 1), height, width))
            count += 1
            if len(last) > plan.shared:
                writer.add(last.popleft())
        if count <= plan.shared:
            raise VideoError(
                f"The video to continue has {count} frame{'' if count == 1 else 's'}, expected more than "
                f"{plan.shared}. Choose a longer video."
            )
        # The dropped frames of the first segment are shown from this video.
        for frame in list(last)[: plan.dropped]:
            writer.add(frame)
    tail = torch.stack(list(last))
    return Opening(part, count - plan.overlap, tail, tensors_sha256(tail))

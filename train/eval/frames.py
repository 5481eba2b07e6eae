"""Reading a video for measuring: its facts, and its frames in small groups."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicdistill_core.errors import VideoError
from magicdistill_core.media.opening import Media
from magicdistill_core.media.video import read_video

_GROUP_PIXELS = 1 << 23
_MOST_FRAMES = 16
# x264 and x265 write their settings as text into the first packet.
_CRF = re.compile(rb"crf=([0-9.]+)")


@dataclass(frozen=True)
class VideoFacts:
    """What decides whether two figures may be compared.

    Attributes:
        width: width as shown, in pixels.
        height: height as shown, in pixels.
        fps: frame rate.
        codec: FFmpeg's name of the codec.
        crf: the encoder's constant rate factor; None if the file does not state it.
        frames: number of frames that were decoded; 0 before the end.
        notes: what the reader found, such as missing frames.
    """

    width: int
    height: int
    fps: float
    codec: str
    crf: float | None
    frames: int = 0
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}


class FrameReader:
    """Reads a video once, in groups of frames `[n, H, W, 3]`, uint8."""

    def __init__(self, path: Path) -> None:
        """Open the video and read its first frame.

        Raises:
            VideoError: if it cannot be read, or has no frame.
        """
        codec, crf = _encoding(path)
        self._video = read_video(path)
        try:
            self._first = next(self._video.frames)
        except StopIteration:
            raise VideoError(f"{path} holds no frame that can be decoded. Copy or record the video again.") from None
        height, width = self._first.shape[:2]
        self._read = 0
        self._start = VideoFacts(width, height, self._video.fps, codec, crf)

    @property
    def facts(self) -> VideoFacts:
        """The facts; the number of frames is right after the last group."""
        start = self._start
        notes = tuple(self._video.notes)
        return VideoFacts(start.width, start.height, start.fps, start.codec, start.crf, self._read, notes)

    def groups(self) -> Iterator[Tensor]:
        """Yield the frames in groups of at most 16, and of at most about 8 million pixels.

        Raises:
            VideoError: if the video is damaged after its first frame, or a frame has another size.
        """
        size = max(1, min(_MOST_FRAMES, _GROUP_PIXELS // (self._start.width * self._start.height)))
        group = [self._first]
        self._read = 1
        for frame in self._video.frames:
            if frame.shape != self._first.shape:
                raise VideoError(
                    f"Frame {self._read} has {frame.shape[1]} x {frame.shape[0]} pixels, the first frame "
                    f"{self._start.width} x {self._start.height}. Re-encode the video at one size."
                )
            if len(group) == size:
                yield torch.stack(group)
                group = []
            group.append(frame)
            self._read += 1
        yield torch.stack(group)


def _encoding(path: Path) -> tuple[str, float | None]:
    """Return the codec's name and the crf of a video."""
    with Media(path) as media:
        if not media.container.streams.video:
            raise VideoError(f"{path} has no picture stream. Expected a video.")
        stream = media.container.streams.video[0]
        packet = next(iter(media.packets(stream)))
        found = _CRF.search(bytes(packet)) if packet.size else None
        return stream.codec_context.name, float(found.group(1)) if found else None

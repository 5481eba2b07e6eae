"""Read videos, images and tags; resize and crop frames.

Frames are uint8 RGB tensors `[H, W, 3]`, clips `[T, H, W, 3]`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import VideoError
from ..sizes import kept_share
from .opening import Media, Source
from .stream import TimedFrame, open_stream
from .webp import read_webp_tags

# In a portrait that is taller than the video, the face is usually above the middle. Therefore only 1 / _TOP_PART of the
# surplus rows is cut off at the top, and the rest at the bottom.
_TOP_PART = 4
# The height of a known face's centre in the crop, from the top: less than half, because the body is below the face.
_FACE_DEPTH = 0.4
_KEPT_WITHOUT_NOTE = 0.95


@dataclass(frozen=True)
class Video:
    """An opened video.

    Attributes:
        fps: frame rate in frames per second.
        rate: `fps` as an exact fraction.
        count: number of frames that the file states; None if it states none, or if only a part is read.
        start: time of the first frame in seconds from the file's beginning. The video's sound begins there
            (`read_audio`).
        frames: frames `[H, W, 3]` as a player shows them; can be iterated once.
        notes: sentences about the pictures that a user should know; complete after the last frame.
    """

    fps: float
    rate: Fraction
    count: int | None
    start: float
    frames: Iterator[Tensor]
    notes: list[str]


class ShownFrame(NamedTuple):
    """A frame of a video that was resampled.

    Attributes:
        run: number of the run of connected frames that it belongs to. After a gap a new run begins.
        source: number of the frame in the file.
        time: its time after resampling, in seconds from the file's beginning.
        pixels: `[H, W, 3]`, uint8.
    """

    run: int
    source: int
    time: float
    pixels: Tensor


@dataclass(frozen=True)
class VideoRuns:
    """A video in runs of connected frames; see `read_runs`.

    Attributes:
        frames: can be iterated once.
        notes: sentences about the pictures that a user should know; complete after the last frame.
    """

    frames: Iterator[ShownFrame]
    notes: list[str]


def read_video(
    source: Source, fps: float | None = None, *, start: float = 0.0, duration: float = 0.0, deep: bool = False
) -> Video:
    """Open a video for streaming. Its frames come as a player shows them (`Pictures`), and without interlacing.

    Seconds count from the file's beginning, as in a player: from the first moment of the stream that begins first.

    If frames are missing for a while, resampling repeats the last picture, as a player does. This keeps sound and
    picture together. Where the file's times are damaged or begin anew, the frames follow each other without a pause
    (`Clock`).

    Args:
        source: a file's path, or its bytes.
        fps: frame rate to resample to; each new frame is the source frame nearest in time. None keeps the file's own
            frames and average rate.
        start: seconds to skip at the beginning.
        duration: seconds to read; 0 reads to the end.
        deep: True returns float32 frames in [0, 1], decoded with 16 bits per channel; False returns uint8 frames.

    Raises:
        VideoError: at once if the file does not exist, is empty, is not a video, or has no frame; while iterating if it
            is damaged after its first frame.
    """
    stream = open_stream(source, start, duration, deep)
    first, rate = stream.first.time, stream.pace.rate
    if fps is None:
        frames = (timed.pixels for timed in stream.frames)
    else:
        frames = (shown.pixels for shown in _resample(stream.frames, float(1 / rate), fps, fill=True))
    count = None if start or duration else stream.count
    return Video(
        float(rate) if fps is None else fps, rate if fps is None else Fraction(fps), count, first, frames, stream.notes
    )


def read_runs(source: Source, fps: float) -> VideoRuns:
    """Open a video for training: resampled like in `read_video`, but no picture is repeated to fill a gap.

    A gap is a time without new frames of more than 0.2 seconds and more than 5 usual frame intervals, or a place where
    the file's times go back. There one run of connected frames ends and the next begins.

    Args:
        source: a file's path, or its bytes.
        fps: frame rate to resample to.

    Raises:
        VideoError: see `read_video`.
    """
    stream = open_stream(source)
    return VideoRuns(_resample(stream.frames, float(1 / stream.pace.rate), fps, fill=False), stream.notes)


def _resample(frames: Iterable[TimedFrame], interval: float, fps: float, fill: bool) -> Iterator[ShownFrame]:
    """Yield one frame per `1 / fps` seconds, each the source frame nearest in time.

    Args:
        frames: frames in the order of their times.
        interval: seconds for which the last source frame of a run is shown.
        fps: frame rate of the result.
        fill: True shows the frame before a gap until its end; False begins a new run after the gap.
    """
    run, start, emitted, latest, shown = -1, 0.0, 0, 0.0, None
    for source, frame in enumerate(frames):
        begins = shown is None or (frame.gap and not fill)
        if shown is not None:
            if begins:
                until = latest + interval / 2
            else:
                until = frame.time - interval / 2 if frame.gap else (latest + frame.time) / 2
            while start + emitted / fps < until:
                yield shown._replace(time=start + emitted / fps)
                emitted += 1
        if begins:
            run, start, emitted = run + 1, frame.time, 0
        latest, shown = frame.time, ShownFrame(run, source, frame.time, frame.pixels)
    while shown is not None and start + emitted / fps < latest + interval / 2:
        yield shown._replace(time=start + emitted / fps)
        emitted += 1


def read_image(path: str | Path) -> Tensor:
    """Read a still image as uint8 RGB `[H, W, 3]`, with its EXIF orientation applied and a white background.

    Args:
        path: a PNG, JPEG or WebP file, or another format that Pillow reads.

    Raises:
        VideoError: if the file does not exist, is empty, is damaged or is not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file. Check the path of the image.")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scaling
                upright = Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).round().astype(np.uint8))
            opaque = flattened(upright)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise VideoError(
            f"{path} cannot be read as an image ({error}). Expected a PNG, JPEG or WebP image. Copy it again, or "
            f"save it in one of these formats."
        ) from error
    return torch.from_numpy(np.array(opaque))


def flattened(image: Image.Image) -> Image.Image:
    """Return a picture as RGB. Its transparent parts become white.

    Args:
        image: a picture in any mode of 8 bits.
    """
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def read_tags(path: str | Path) -> dict[str, str]:
    """Read the metadata tags of a video file, as text by name.

    WebM stores tag names in capitals; they are returned in lower case. Bytes that are not UTF-8 become replacement
    characters.

    Args:
        path: a video file, also an animated WebP file.

    Raises:
        VideoError: if the file does not exist or is not a video.
    """
    path = Path(path)
    if path.suffix.lower() == ".webp":
        return read_webp_tags(path)
    with Media(path) as media:
        lower = "matroska" in media.container.format.name
        return {key.lower() if lower else key: value for key, value in media.container.metadata.items()}


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, in pixels.

    Attributes:
        x: column of the left edge.
        y: row of the upper edge.
        width: extent to the right.
        height: extent downwards.
    """

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        """The x and y of the centre."""
        return self.x + self.width / 2, self.y + self.height / 2


def resize_crop(frames: Tensor, height: int, width: int, face: Box | None = None) -> Tensor:
    """Crop frames to the largest region with the aspect ratio of the result, and resize it (bicubic, antialiased).

    Frames that are too wide lose equal parts on the left and the right. Frames that are too tall lose a quarter of the
    surplus at the top and the rest at the bottom, which keeps heads in the picture. If `face` is set, the region is
    placed around the face instead.

    Args:
        frames: `[..., H, W, 3]`, uint8, or floating point in [0, 1].
        height: height of the result in pixels.
        width: width of the result in pixels.
        face: the rectangle of the face in the frames, or None. The face's centre is placed in the middle of the
            region's width and at 2/5 of its height, as far as the borders of the frame allow.

    Returns:
        `[..., height, width, 3]` of the same dtype.
    """
    rows, columns = frames.shape[-3:-1]
    top, left, crop_rows, crop_columns = crop_region(rows, columns, height, width, face)
    region = frames[..., top : top + crop_rows, left : left + crop_columns, :]
    if (crop_rows, crop_columns) == (height, width):
        return region.contiguous()
    flat = region.reshape(-1, crop_rows, crop_columns, 3)
    out = flat.new_empty(flat.shape[0], height, width, 3)
    for source, target in zip(flat, out, strict=True):  # keeps only one frame in floating point
        plane = source.permute(2, 0, 1)[None]
        resized = F.interpolate(
            # PyTorch's antialiased resizing on the CPU knows no half precision.
            plane if plane.dtype == torch.float64 else plane.float(),
            size=(height, width),
            mode="bicubic",
            antialias=True,
        )[0].permute(1, 2, 0)
        # Bicubic overshoots at edges.
        target.copy_(resized.clamp(0, 1) if frames.is_floating_point() else resized.round().clamp(0, 255))
    return out.reshape(*frames.shape[:-3], height, width, 3)


def crop_region(rows: int, columns: int, height: int, width: int, face: Box | None = None) -> tuple[int, int, int, int]:
    """Return the region that `resize_crop` keeps: its first row, first column, number of rows and of columns.

    Args:
        rows: height of the frames in pixels.
        columns: width of the frames in pixels.
        height: height of the result in pixels.
        width: width of the result in pixels.
        face: the rectangle of the face in the frames, or None.
    """
    crop_rows = min(rows, max(1, round(columns * height / width)))
    crop_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - crop_rows) // _TOP_PART, (columns - crop_columns) // 2
    if face is not None:
        x, y = face.centre
        left = min(max(round(x - crop_columns / 2), 0), columns - crop_columns)
        top = min(max(round(y - crop_rows * _FACE_DEPTH), 0), rows - crop_rows)
    return top, left, crop_rows, crop_columns


def crop_note(rows: int, columns: int, height: int, width: int) -> str | None:
    """Return a sentence that tells how much `resize_crop` cuts off an image; None if it cuts off less than 5 %.

    Args:
        rows: height of the image in pixels.
        columns: width of the image in pixels.
        height: height of the result in pixels.
        width: width of the result in pixels.
    """
    kept = kept_share(rows, columns, height, width)
    if kept > _KEPT_WITHOUT_NOTE:
        return None
    return f"the start image is {columns} x {rows}; {1 - kept:.0%} of it is cropped to fit {width} x {height}."

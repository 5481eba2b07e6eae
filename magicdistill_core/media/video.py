"""Read videos, images and tags; resize and crop frames; draw contact sheets.

Frames are uint8 RGB tensors `[H, W, 3]`, clips `[T, H, W, 3]`.
"""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import VideoError
from ..sizes import kept_share
from .audio import Source, medium
from .webp import read_webp_tags

logger = logging.getLogger(__name__)

# libswscale's flags accurate_rnd, full_chr_h_int and bicubic. By default it rounds down, which darkens every conversion
# by about one level of 255, and repeats chroma pixels. The flags are numbers because some versions of PyAV do not name
# them.
EXACT = 0x40000 | 0x2000 | 4
# In a portrait that is taller than the video, the face is usually above the middle. Therefore only 1 / _TOP_PART of the
# surplus rows is cut off at the top, and the rest at the bottom.
_TOP_PART = 4
# The height of a known face's centre in the crop, from the top: less than half, because the body is below the face.
_FACE_DEPTH = 0.4
_KEPT_WITHOUT_NOTE = 0.95
_SHEET_MIN_CELL = 160
_SHEET_LABEL_HEIGHT = 24
_SHEET_GAP = 4


@dataclass(frozen=True)
class Video:
    """An opened video.

    Attributes:
        fps: frame rate in frames per second.
        rate: `fps` as an exact fraction.
        count: number of frames that the file states; None if it states none, or if only a part is read.
        start: time of the first frame in seconds, on the file's own clock. The video's sound begins there
            (`read_audio`).
        frames: upright frames `[H, W, 3]`; can be iterated once.
    """

    fps: float
    rate: Fraction
    count: int | None
    start: float
    frames: Iterator[Tensor]


def read_video(
    source: Source, fps: float | None = None, *, start: float = 0.0, duration: float = 0.0, deep: bool = False
) -> Video:
    """Open a video for streaming. Its rotation metadata is applied to the frames.

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
    name = "The video" if isinstance(source, io.BytesIO) else str(source)
    if not isinstance(source, io.BytesIO):
        if not Path(source).is_file():
            raise VideoError(f"{name} does not exist or is not a file. Check the path of the video.")
        if Path(source).stat().st_size == 0:
            raise VideoError(f"{name} is empty (0 bytes). Copy or record the video again.")
    try:
        container = av.open(medium(source))
    except av.FFmpegError as error:
        raise _unreadable(name, error) from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{name} has no video stream (only {_stream_kinds(container)}). Expected a video file.")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        container.close()
        raise VideoError(f"{name} has no frame rate. Re-encode it, for example to mp4 with h264.")
    count = stream.frames if stream.frames and not start and not duration else None
    decoded = _decode(name, container, float(rate), start, duration, deep)
    first = next(decoded)
    timed = chain([first], decoded)
    frames = (frame for _, frame in timed) if fps is None else _resample(timed, 1 / float(rate), fps)
    return Video(float(rate) if fps is None else fps, Fraction(rate if fps is None else fps), count, first[0], frames)


def _stream_kinds(container: av.container.InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _unreadable(name: str, error: av.FFmpegError) -> VideoError:
    return VideoError(
        f"{name} cannot be read as a video ({error.strerror}). It is damaged or in an unsupported format. Copy "
        f"it again, or re-encode it, for example to mp4 with h264."
    )


def _decode(
    name: str, container: av.container.InputContainer, rate: float, start: float, duration: float, deep: bool
) -> Iterator[tuple[float, Tensor]]:
    """Yield times in seconds and upright frames, in presentation order."""
    count = 0
    with container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # Allow half a frame of tolerance, because times are rounded to the container's ticks.
        first, end = start - 0.5 / rate, start + duration - 0.5 / rate if duration else math.inf
        try:
            if start:
                container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError(f"{name} is damaged: frame {count} cannot be decoded. Copy the file again.")
                time = frame.time if frame.time is not None else count / rate
                if start and time < first:
                    continue
                if time >= end:
                    break
                pixels = frame.to_ndarray(format="rgb48le" if deep else "rgb24", interpolation=EXACT)
                if deep:
                    pixels = pixels.astype(np.float32) / 65535
                # `rotation` is in degrees counter-clockwise, as in rot90.
                upright = np.rot90(pixels, k=round(frame.rotation / 90), axes=(0, 1))
                count += 1
                yield time, torch.from_numpy(np.ascontiguousarray(upright))
        except av.FFmpegError as error:
            raise _unreadable(name, error) from error
        if count == 0:
            raise VideoError(f"{name} holds no frame that can be decoded. Copy or record the video again.")
        if count < stream.frames and not start and not duration:
            logger.warning("%s should have %d frames, only %d could be decoded", name, stream.frames, count)


def _resample(timed: Iterator[tuple[float, Tensor]], duration: float, fps: float) -> Iterator[Tensor]:
    """Yield one frame per `1 / fps` seconds, each the source frame nearest in time.

    Args:
        timed: times in seconds and frames.
        duration: seconds for which the last source frame is shown.
        fps: frame rate of the result.
    """
    start, shown = next(timed)
    previous, emitted = start, 0
    for time, frame in timed:
        while start + emitted / fps < (previous + time) / 2:
            yield shown
            emitted += 1
        previous, shown = time, frame
    while start + emitted / fps < previous + duration / 2:
        yield shown
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

    WebM stores tag names in capitals; they are returned in lower case.

    Args:
        path: a video file, also an animated WebP file.

    Raises:
        VideoError: if the file does not exist or is not a video.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file. Check the path of the video.")
    if path.suffix.lower() == ".webp":
        return read_webp_tags(path)
    try:
        with av.open(str(path)) as container:
            lower = "matroska" in container.format.name
            return {key.lower() if lower else key: value for key, value in container.metadata.items()}
    except av.FFmpegError as error:
        raise _unreadable(str(path), error) from error


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
    crop_rows = min(rows, max(1, round(columns * height / width)))
    crop_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - crop_rows) // _TOP_PART, (columns - crop_columns) // 2
    if face is not None:
        x, y = face.centre
        left = min(max(round(x - crop_columns / 2), 0), columns - crop_columns)
        top = min(max(round(y - crop_rows * _FACE_DEPTH), 0), rows - crop_rows)
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


def contact_sheet(rows: Sequence[Tensor], labels: Sequence[str], columns: int) -> Image.Image:
    """Draw clips as labelled rows of frames on one picture.

    Args:
        rows: uint8 clips `[T, H, W, 3]` of one frame size; a still image is a clip of one frame.
        labels: the text above each row.
        columns: largest number of frames per row; they are evenly spaced in time.

    Raises:
        ValueError: if there is no row, frame sizes differ, the number of labels is not the number of rows, or `columns`
            is less than 1.
    """
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1 or len(labels) != len(rows) or columns < 1:
        raise ValueError(
            f"A contact sheet needs one frame size, one label per row and at least one column; got {len(rows)} rows, "
            f"{len(labels)} labels, {columns} columns and the frame sizes {sizes}."
        )
    height, width, _ = sizes.pop()
    # Very small frames are enlarged by an integer factor, which keeps their pixels sharp.
    zoom = max(1, -(-_SHEET_MIN_CELL // height))
    cell = (width * zoom, height * zoom)
    pitch_x, pitch_y = cell[0] + _SHEET_GAP, _SHEET_LABEL_HEIGHT + cell[1] + _SHEET_GAP
    used = min(columns, max(row.shape[0] for row in rows))
    sheet = Image.new("RGB", (used * pitch_x + _SHEET_GAP, len(rows) * pitch_y), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for number, (clip, label) in enumerate(zip(rows, labels, strict=True)):
        top = number * pitch_y
        draw.text((_SHEET_GAP, top + 3), label, fill="black", font=font)
        picked = torch.linspace(0, clip.shape[0] - 1, min(columns, clip.shape[0])).round().int()
        for column, index in enumerate(picked.tolist()):
            picture = Image.fromarray(clip[index].cpu().numpy()).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(picture, (_SHEET_GAP + column * pitch_x, top + _SHEET_LABEL_HEIGHT))
    return sheet

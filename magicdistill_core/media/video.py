"""Frames from files, and what is done to them: streaming decode, still images, tags, resize and crop, contact sheets.

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

# libswscale's accurate_rnd, full_chr_h_int and bicubic: by default it rounds down, which darkens every conversion by
# about one level of 255, and repeats chroma. Numbers, because not every version of PyAV has names for them.
EXACT = 0x40000 | 0x2000 | 4
# In a portrait that is taller than the video the face is above the middle: of the rows to be cut off, one part of so
# many goes at the top, the rest at the bottom.
_TOP_PART = 4
# A face that is given comes to lie in the middle of the width and this far down: heads leave more room below.
_FACE_DEPTH = 0.4
_KEPT_UNSAID = 0.95
_SHEET_MIN_CELL = 160
_SHEET_LABEL_HEIGHT = 24
_SHEET_GAP = 4


@dataclass(frozen=True)
class Video:
    """An opened video: its frame rate, and its upright frames `[H, W, 3]` in one pass.

    `rate` is `fps` as an exact fraction; `count` how many frames the file says it has, None if it does not say; `start`
    the time of the first frame in seconds on the file's own clock, where its sound is to begin (`read_audio`).
    """

    fps: float
    rate: Fraction
    count: int | None
    start: float
    frames: Iterator[Tensor]


def read_video(
    source: Source, fps: float | None = None, *, start: float = 0.0, duration: float = 0.0, deep: bool = False
) -> Video:
    """Open a video for streaming; rotation metadata is applied to the frames.

    Args:
        source: a file, or the bytes of one.
        fps: frame rate to resample to, by showing at every instant the source frame nearest in time; None keeps the
            file's own frames and average rate.
        start: seconds to leave out at the beginning.
        duration: seconds to read; 0 reads to the end.
        deep: frames as float32 in [0, 1] of 16 bits a channel, instead of uint8.

    Raises:
        VideoError: at once if the file is absent, empty, no video or holds no frame; while iterating if it is damaged
            behind its first frame.
    """
    name = "The video" if isinstance(source, io.BytesIO) else str(source)
    if not isinstance(source, io.BytesIO):
        if not Path(source).is_file():
            raise VideoError(f"{name} does not exist or is no file. Check the path of the video.")
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
        raise VideoError(f"{name} does not say its frame rate. Re-encode it, for example to mp4 with h264.")
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
        f"{name} cannot be read as a video ({error.strerror}). It is damaged or in a format that is not supported: "
        f"copy it again, or re-encode it, for example to mp4 with h264."
    )


def _decode(
    name: str, container: av.container.InputContainer, rate: float, start: float, duration: float, deep: bool
) -> Iterator[tuple[float, Tensor]]:
    """Times in seconds and upright frames, in presentation order."""
    count = 0
    with container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # Half a frame of tolerance: times are rounded to the container's ticks.
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
                # A display matrix turns counter-clockwise by `rotation` degrees, as rot90 does.
                upright = np.rot90(pixels, k=round(frame.rotation / 90), axes=(0, 1))
                count += 1
                yield time, torch.from_numpy(np.ascontiguousarray(upright))
        except av.FFmpegError as error:
            raise _unreadable(name, error) from error
        if count == 0:
            raise VideoError(f"{name} holds no frame that can be decoded. Copy or record the video again.")
        if count < stream.frames and not start and not duration:
            logger.warning("%s says it has %d frames, only %d could be decoded", name, stream.frames, count)


def _resample(timed: Iterator[tuple[float, Tensor]], duration: float, fps: float) -> Iterator[Tensor]:
    """Frames at `k / fps` from the first frame on, each the source frame nearest in time.

    Args:
        duration: seconds that the last frame is shown.
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
    """A still image, upright by its EXIF orientation, transparency laid on white: uint8 `[H, W, 3]`.

    Raises:
        VideoError: if the file is absent, empty, damaged or no image.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is no file. Check the path of the image.")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scaling
                upright = Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).round().astype(np.uint8))
            layer = upright.convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise VideoError(
            f"{path} cannot be read as an image ({error}). Expected a PNG, JPEG or WebP picture: copy it again or "
            f"save it in one of these formats."
        ) from error
    opaque = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return torch.from_numpy(np.array(opaque))


def read_tags(path: str | Path) -> dict[str, str]:
    """The metadata tags of a video file; of WebM, which keeps their names in capitals, in small letters.

    Raises:
        VideoError: if the file is absent or no video.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is no file. Check the path of the video.")
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
    """A rectangle in a picture, in pixels from its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


def resize_crop(frames: Tensor, height: int, width: int, face: Box | None = None) -> Tensor:
    """Cut the largest region of the wanted aspect and resize it, antialiased (bicubic).

    What is too wide loses as much on the left as on the right; what is too tall loses a quarter of the surplus at the
    top and the rest at the bottom, so that heads stay in the picture. With a face the region is moved to it.

    Args:
        frames: `[..., H, W, 3]`, uint8, or floating point in [0, 1].
        face: where the face is; the region moves, as far as the picture reaches, until the face's centre is in the
            middle of its width and two fifths down its height.

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
    for source, target in zip(flat, out, strict=True):  # one frame in floating point at a time
        plane = source.permute(2, 0, 1)[None]
        resized = F.interpolate(
            plane if plane.is_floating_point() else plane.float(),
            size=(height, width),
            mode="bicubic",
            antialias=True,
        )[0].permute(1, 2, 0)
        # Bicubic overshoots at edges.
        target.copy_(resized.clamp(0, 1) if frames.is_floating_point() else resized.round().clamp(0, 255))
    return out.reshape(*frames.shape[:-3], height, width, 3)


def crop_note(rows: int, columns: int, height: int, width: int) -> str | None:
    """What to tell whoever gave `resize_crop` a picture of another shape; None if next to nothing of it is cut off."""
    kept = kept_share(rows, columns, height, width)
    if kept > _KEPT_UNSAID:
        return None
    return f"the start image is {columns} x {rows}; {1 - kept:.0%} of it is cropped to fit {width} x {height}."


def contact_sheet(rows: Sequence[Tensor], labels: Sequence[str], columns: int) -> Image.Image:
    """Clips as labelled strips under each other, each with up to `columns` frames evenly spread over its length.

    Args:
        rows: uint8 clips `[T, H, W, 3]` of one frame size; a still image is a clip of one frame.
        labels: the text above each strip.

    Raises:
        ValueError: if there is no row, the sizes differ, or the labels are not as many as the rows.
    """
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1 or len(labels) != len(rows) or columns < 1:
        raise ValueError(f"A contact sheet of {len(rows)} rows, {len(labels)} labels and frame sizes {sizes}.")
    height, width, _ = sizes.pop()
    # Pocket-sized frames are enlarged by a whole factor, so that their pixels stay what they are.
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

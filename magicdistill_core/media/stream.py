"""The picture stream of a video file: choosing it, decoding it, and the times of its frames."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

import av
from torch import Tensor

from ..errors import VideoError
from .clock import Clock, Pace, may_restart, measure_pace
from .hdr import HDR_TRANSFERS
from .opening import MOST_PIXELS, Media, Source
from .pictures import Pictures, deinterlaced

# The packets from which the pace is measured are kept in memory: at most so many, and so many bytes.
_MEASURED_PACKETS, _MEASURED_BYTES = 48, 1 << 26
# Frames between decoding and showing. A key frame that is decoded before the time of a seek can be shown after it.
_REORDERED = 16
_SLOWEST, _FASTEST = Fraction(1, 60), 1000
# FFmpeg's own decoders of these ignore transparency. libvpx's do not.
_DECODERS_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class TimedFrame(NamedTuple):
    """A frame and its time.

    Attributes:
        time: seconds from the file's beginning.
        gap: whether the frame is not connected to the frame before it (`Clock`).
        pixels: `[H, W, 3]`, see `Pictures`.
    """

    time: float
    gap: bool
    pixels: Tensor


class DecodedFrame(NamedTuple):
    """A frame whose picture is made only where it is needed, because that takes longer than decoding it.

    Attributes:
        time: seconds from the file's beginning.
        gap: whether the frame is not connected to the frame before it (`Clock`).
        pixels: makes the picture `[H, W, 3]`, reduced to a longest side in pixels; None keeps its size. It must be
            called before the next frame is read.
    """

    time: float
    gap: bool
    pixels: Callable[[int | None], Tensor]


F = TypeVar("F", TimedFrame, DecodedFrame)


@dataclass(frozen=True)
class FrameStream(Generic[F]):
    """A decoded picture stream.

    Attributes:
        pace: how fast the frames follow each other.
        count: number of frames that the file states; None if it states none.
        first: the first frame.
        frames: all frames, in the order of their times; can be iterated once.
        notes: sentences about the pictures that a user should know; complete after the last frame.
    """

    pace: Pace
    count: int | None
    first: F
    frames: Iterator[F]
    notes: list[str]


def open_stream(
    source: Source, start: float = 0.0, duration: float = 0.0, deep: bool = False
) -> FrameStream[TimedFrame]:
    """Open the picture stream of a file and decode its first frame.

    Args:
        source: a file's path, or its bytes.
        start: seconds to skip, from the file's beginning.
        duration: seconds to read; 0 reads to the end.
        deep: see `Pictures`.

    Raises:
        VideoError: see `read_video`.
    """
    if start:
        # Some files cannot be sought, or only imprecisely. They are decoded from their beginning.
        with contextlib.suppress(VideoError):
            return _open(source, start, duration, deep, seek=True)
    return _open(source, start, duration, deep, seek=False)


def decode_stream(source: Source) -> FrameStream[DecodedFrame]:
    """Open the picture stream of a file; its pictures are made only where they are needed.

    Args:
        source: a file's path, or its bytes.

    Raises:
        VideoError: see `read_video`.
    """
    media = Media(source)
    with _closed_after_an_error(media):
        reader = _Reader(media, 0.0, 0.0, deep=False, seek=False)
        frames = reader.frames()
        first = next(frames)
    return FrameStream(reader.pace, reader.stream.frames or None, first, chain([first], frames), reader.notes)


def _open(source: Source, start: float, duration: float, deep: bool, seek: bool) -> FrameStream[TimedFrame]:
    media = Media(source)
    with _closed_after_an_error(media):
        reader = _Reader(media, start, duration, deep, seek)
        frames = (TimedFrame(frame.time, frame.gap, frame.pixels(None)) for frame in reader.frames())
        first = next(frames)
    return FrameStream(reader.pace, reader.stream.frames or None, first, chain([first], frames), reader.notes)


@contextlib.contextmanager
def _closed_after_an_error(media: Media) -> Iterator[None]:
    try:
        yield
    except BaseException:
        media.close()
        raise


class _Reader:
    """Reads the picture stream of an opened file."""

    def __init__(self, media: Media, start: float, duration: float, deep: bool, seek: bool) -> None:
        self._media, self._start, self._duration, self._deep = media, start, duration, deep
        self.notes: list[str] = []
        self.stream = _picture_stream(media)
        self._decoder = self._make_decoder()
        try:
            self._packets = self._demux(seek)
        except (av.FFmpegError, OSError, OverflowError) as error:  # OverflowError: the time of a seek
            raise media.unreadable(error) from error

    def _make_decoder(self) -> av.VideoCodecContext:
        codec = self.stream.codec_context
        alpha = {key.lower(): value for key, value in self.stream.metadata.items()}.get("alpha_mode") == "1"
        name = _DECODERS_WITH_ALPHA.get(codec.name) if alpha else None
        if name is not None and name in av.codecs_available:
            return av.CodecContext.create(name, "r")
        codec.thread_type = "AUTO"
        codec.options = {"max_pixels": str(MOST_PIXELS)}
        return codec

    def _demux(self, seek: bool) -> Iterator[av.Packet]:
        """Go near the start if `seek` is set, and measure the pace; return all packets from there."""
        container, stream = self._media.container, self.stream
        stated = stream.average_rate or stream.guessed_rate
        early = self._start - _REORDERED / max(float(stated or 1), 1.0)
        if seek and early > 0 and not container.format.flags & av.format.Flags.no_timestamps.value:
            container.seek(round((self._media.origin + early) / stream.time_base), stream=stream)
        packets = self._media.packets(stream)
        head, size = [], 0
        for packet in packets:
            head.append(packet)
            size += packet.size
            if len(head) == _MEASURED_PACKETS or size > _MEASURED_BYTES:
                break
        times = [packet.dts if packet.dts is not None else packet.pts for packet in head]
        pace = measure_pace(stated, [float(time * stream.time_base) for time in times if time is not None])
        if pace is None:
            raise VideoError(f"{self._media.name} has no frame rate. Re-encode it, for example to mp4 with h264.")
        if not _SLOWEST <= pace.rate <= _FASTEST:
            raise VideoError(
                f"{self._media.name} has {float(pace.rate):g} frames per second, expected {float(_SLOWEST):.2g} to "
                f"{_FASTEST}. Its times are damaged. Copy it again, or re-encode it."
            )
        self.pace = pace
        return chain(head, packets)

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield the frames in the order of their times. Close the file at the end."""
        count, gaps = 0, list[float]()
        whole, reduced = (Pictures(self.stream.sample_aspect_ratio, self._deep) for _ in range(2))
        with self._media:
            try:
                for (time, gap), frame in deinterlaced(self._wanted()):
                    transfer = self._decoder.color_trc
                    if transfer in HDR_TRANSFERS:
                        self._note("is HDR. Its colours and brightness are mapped to those of a usual screen.")
                    count += 1
                    if gap:
                        gaps.append(time)

                    def pixels(longest: int | None, frame: av.VideoFrame = frame, transfer: int = transfer) -> Tensor:
                        try:
                            return (whole if longest is None else reduced).rgb(frame, transfer, longest)
                        except (av.FFmpegError, OSError) as error:
                            raise self._media.unreadable(error) from error

                    yield DecodedFrame(time, gap, pixels)
            except (av.FFmpegError, OSError) as error:
                raise self._media.unreadable(error) from error
            if count == 0:
                raise self._nothing_found()
            if gaps:
                places = "1 place" if len(gaps) == 1 else f"{len(gaps)} places, the first"
                self._note(f"has missing frames, or times that jump, at {places} at {gaps[0]:.2f} s.")
            if count < self.stream.frames and not self._start and not self._duration:
                self._note(f"should have {self.stream.frames} frames, only {count} could be decoded.")

    def _note(self, text: str) -> None:
        note = f"{self._media.name} {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _nothing_found(self) -> VideoError:
        name = self._media.name
        if not self._start and not self._duration:
            return VideoError(f"{name} holds no frame that can be decoded. Copy or record the video again.")
        until = f" to {self._start + self._duration:g} s" if self._duration else ""
        begin = (self.stream.start_time or 0) * self.stream.time_base - Fraction(self._media.origin)
        return VideoError(
            f"{name} has no picture from {self._start:g} s{until}. Its pictures begin at {max(float(begin), 0):g} s. "
            f"Choose another start and duration."
        )

    def _wanted(self) -> Iterator[tuple[tuple[float, bool], av.VideoFrame]]:
        """Yield the frames between start and end, each with its time and whether there is a gap before it."""
        clock = Clock.of(self._media.container, self.pace)
        # Allow half a frame of tolerance, because times are rounded to the container's ticks.
        half = 0.5 / float(self.pace.rate)
        first, end = self._start - half, self._start + self._duration - half if self._duration else math.inf
        number = 0
        for frame in self._decoded():
            time, gap = clock.tick(None if frame.time is None else frame.time - self._media.origin)
            if self._start and time < first:
                continue
            if time >= end:
                break
            if frame.is_corrupt:
                raise VideoError(
                    f"{self._media.name} is damaged: frame {number} cannot be decoded. Copy the file again."
                )
            if frame.interlaced_frame:
                self._note("is interlaced. Complete pictures were computed from its fields (bwdif).")
            yield (time, gap and number > 0), frame
            number += 1

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield the decoded frames. A stream that may begin anywhere begins at its first complete frame."""
        waits = may_restart(self._media.container)
        for packet in self._packets:
            try:
                frames = self._decoder.decode(packet)
            except av.error.InvalidDataError:
                if not waits:
                    raise
                continue
            for frame in frames:
                waits = waits and frame.is_corrupt
                if not waits:
                    yield frame


def _picture_stream(media: Media) -> av.VideoStream:
    """Return the stream that a player shows: the best one, but no cover picture.

    Raises:
        VideoError: if there is none, or FFmpeg has no decoder for it.
    """
    streams = media.container.streams
    pictures = [stream for stream in streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    if not pictures:
        kinds = ", ".join(sorted({stream.type for stream in streams if stream.type != "video"})) or "nothing"
        covers = " and a cover picture" if streams.video else ""
        raise VideoError(f"{media.name} has no video stream (only {kinds}{covers}). Expected a video file.")
    best = streams.best("video")
    stream = best if best in pictures else pictures[0]
    if stream.codec_context is None:
        raise VideoError(
            f"{media.name} uses a codec that this FFmpeg cannot decode. Re-encode it, for example to mp4 with h264."
        )
    return stream

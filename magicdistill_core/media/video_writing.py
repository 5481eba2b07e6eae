"""Write video files frame by frame: mp4, WebM, ProRes and animated WebP, with sound and tags. Colours are BT.709."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import VideoError
from ..files import atomic_file
from .audio import Audio
from .pictures import EXACT
from .sound_stream import SoundStream
from .webp import write_webp_tags

_MAX_FPS_DENOMINATOR = 1001  # NTSC rates such as 30000/1001 stay exact
_NTSC = Fraction(1000, 1001)
_MOST_REORDERED = 16  # frames between decoding and showing; the encoders here use fewer
_NTSC_SPELLING = 5e-4  # 23.976 and 29.97 mean 24000/1001 and 30000/1001
_BT709, _LIMITED_RANGE = 1, 1
_CRF_MAX = 51
_VP9_CRF_MAX = 63


@dataclass(frozen=True)
class VideoFormat:
    """A file format.

    Attributes:
        title: its name for users.
        suffix: the suffix of its files.
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the video encoder.
        pixels: FFmpeg's name of the pixel format.
        audio_codec: FFmpeg's name of the audio encoder; None if the format has no sound.
        plays_anywhere: whether all browsers can play it.
        codec_tag: the codec tag in the container; None for FFmpeg's default.
    """

    title: str
    suffix: str
    container: str
    codec: str
    pixels: str
    audio_codec: str | None
    plays_anywhere: bool = False
    codec_tag: str | None = None

    @property
    def deep(self) -> bool:
        """Whether it stores more than 8 bits per channel."""
        return self.pixels.endswith("10le")

    @property
    def available(self) -> bool:
        """Whether the installed PyAV has the video encoder."""
        return self.codec in av.codecs_available

    def options(self, crf: float) -> dict[str, str]:
        """Return the video encoder's options for a quality.

        Args:
            crf: quality on x264's scale, from 0 (best) to 51; it is converted to the encoder's own scale. ProRes
                ignores it.
        """
        match self.codec:
            case "libx265":
                return {"crf": f"{crf:g}", "x265-params": "log-level=error" + (":lossless=1" if crf == 0 else "")}
            case "libvpx-vp9":
                quality = {"lossless": "1"} if crf == 0 else {"crf": f"{round(crf * _VP9_CRF_MAX / _CRF_MAX)}"}
                return quality | {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
            case "prores_ks":
                return {"profile": "hq", "vendor": "apl0"}
            case "libwebp_anim":
                return {"lossless": "1"} if crf == 0 else {"quality": f"{100 - 1.6 * crf:g}"}
        return {"crf": f"{crf:g}"}


MP4 = VideoFormat("mp4 (h264)", ".mp4", "mp4", "libx264", "yuv420p", "aac", True)
MP4_10_BIT = VideoFormat("mp4 (h264, 10-bit)", ".mp4", "mp4", "libx264", "yuv420p10le", "aac")
# Apple's players accept only the tag `hvc1`.
HEVC_10_BIT = VideoFormat("mp4 (hevc, 10-bit)", ".mp4", "mp4", "libx265", "yuv420p10le", "aac", codec_tag="hvc1")
WEBM = VideoFormat("webm (vp9)", ".webm", "webm", "libvpx-vp9", "yuv420p", "libopus", True)
PRORES = VideoFormat("mov (ProRes 422 HQ)", ".mov", "mov", "prores_ks", "yuv422p10le", "pcm_s16le")
WEBP = VideoFormat("webp (animated)", ".webp", "webp", "libwebp_anim", "bgra", None, True)

FORMATS = (MP4, MP4_10_BIT, HEVC_10_BIT, WEBM, PRORES, WEBP)


def frame_rate(fps: float | Fraction) -> Fraction:
    """Return the exact fraction of a rounded frame rate, in frames per second: 29.97 is 30000/1001.

    Args:
        fps: the frame rate; a number near an NTSC rate (23.976, 29.97, 59.94) becomes that rate.

    Raises:
        VideoError: if it is not a positive number.
    """
    if not 0 < fps < math.inf:
        raise VideoError(
            f"The frame rate (fps) is {fps}, expected a positive number of frames per second. Use 24, or the rate of "
            f"the model."
        )
    exact = Fraction(fps)
    ntsc = round(exact / _NTSC) * _NTSC
    if exact != round(exact) and abs(ntsc - exact) < _NTSC_SPELLING:
        return ntsc
    return exact.limit_denominator(_MAX_FPS_DENOMINATOR)


class VideoWriter:
    """An open video file to which frames are added; see `video_writer`.

    Attributes:
        frames: number of frames added so far.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        fps: float | Fraction,
        tags: Mapping[str, str],
        crf: float,
        format: VideoFormat,
        audio: Audio | None,
    ) -> None:
        if not 0 <= crf <= _CRF_MAX:
            raise VideoError(f"The quality (crf) is {crf}, expected 0 (best) to {_CRF_MAX}. Use 18 if in doubt.")
        self.frames = 0
        self._name, self._format, self._crf, self._audio = name, format, crf, audio
        self._rate = frame_rate(fps)
        flags = {"mp4": {"movflags": "use_metadata_tags+faststart"}, "webp": {"loop": "0"}}
        flags["mov"] = flags["mp4"]
        # FFmpeg cannot derive the container from the temporary name, so it is passed. Without "file:", FFmpeg takes
        # the name 12:30.mp4 for a protocol.
        self._container = av.open(
            f"file:{path.absolute()}", "w", format=format.container, options=flags.get(format.container, {})
        )
        self._container.metadata.update(tags)
        self._stream: av.VideoStream | None = None
        self._sound: SoundStream | None = None

    def add(self, pixels: Tensor) -> None:
        """Write the next frame.

        Args:
            pixels: RGB `[H, W, 3]`, uint8, or floating point in [0, 1].

        Raises:
            VideoError: if the shape or dtype is wrong, a side is odd (chroma has half the resolution; only
                WebP accepts it), or the size differs from the first frame's.
        """
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
            raise VideoError(
                f"{self._name}: got a frame of {pixels.dtype} {list(pixels.shape)}, expected uint8 or floating point "
                f"[H, W, 3]. Convert the frames to RGB first."
            )
        height, width = pixels.shape[:2]
        if self._stream is None:
            self._stream = self._open(height, width)
        elif (height, width) != (self._stream.height, self._stream.width):
            raise VideoError(
                f"{self._name}: frame {self.frames} is {width} x {height}, but the frames before it are "
                f"{self._stream.width} x {self._stream.height}. Resize all frames to one size first."
            )
        frame = av.VideoFrame.from_ndarray(*self._samples(pixels))
        if self._format.codec == "libwebp_anim":
            frame = frame.reformat(format=self._format.pixels)
        else:
            frame = frame.reformat(format=self._format.pixels, dst_colorspace="itu709", interpolation=EXACT)
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        self._mux(self._stream.encode(frame))
        self.frames += 1
        if self._sound is not None:
            self._sound.write_until(self.frames / self._rate)

    def _open(self, height: int, width: int) -> av.VideoStream:
        if (height % 2 or width % 2) and self._format.codec != "libwebp_anim":
            raise VideoError(
                f"{self._name} cannot be written with frames of {width} x {height}: {self._format.title} needs even "
                f"sides. Crop or resize to even sides."
            )
        stream = self._container.add_stream(self._format.codec, rate=self._rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, self._format.pixels
        stream.options = self._format.options(self._crf)
        codec = stream.codec_context
        codec.time_base = 1 / self._rate
        if self._format.codec_tag is not None:
            codec.codec_tag = self._format.codec_tag
        if self._format.codec != "libwebp_anim":
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = _LIMITED_RANGE
        if self._audio is not None and self._format.audio_codec is not None:
            # Add the sound before the first packet, which writes the container's header.
            self._sound = SoundStream(self._container, self._format.audio_codec, self._audio)
        return stream

    def _samples(self, pixels: Tensor) -> tuple[NDArray[np.generic], str]:
        """Return a frame with the bit depth of the format (16 or 8 bits), and FFmpeg's name of its pixel format."""
        top, dtype, name = (65535, np.uint16, "rgb48le") if self._format.deep else (255, np.uint8, "rgb24")
        array = pixels.detach().cpu()
        if array.dtype == torch.uint8:
            plain = (array.int() * (top // 255)).numpy().astype(dtype)
        else:
            plain = (array.float().clamp(0, 1) * top).round().numpy().astype(dtype)
        return np.ascontiguousarray(plain), name

    def finish(self) -> None:
        """Write what the encoders still buffer: the last frames and sound samples. Call it once, after the last `add`.

        Raises:
            VideoError: if no frame was added.
        """
        if self._stream is None:
            raise VideoError(
                f"{self._name} cannot be written with 0 frames, expected at least one. Add or connect frames."
            )
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()

    def _mux(self, packets: list[av.Packet]) -> None:
        assert self._stream is not None
        for packet in packets:
            # For clips shorter than its delay, x265 (4.2) returns uninitialised memory as the decoding time.
            if packet.pts is not None and packet.dts is not None and packet.time_base is not None:
                ahead = (packet.pts - packet.dts) * packet.time_base * self._rate
                if not 0 <= ahead <= _MOST_REORDERED:
                    packet.dts = packet.pts
            self._container.mux(packet)

    def close(self) -> None:
        """Close the file. Without `finish` before it, the file is incomplete."""
        self._container.close()


@contextmanager
def video_writer(
    path: str | Path,
    fps: float | Fraction,
    tags: Mapping[str, str] | None = None,
    crf: float = 18,
    format: VideoFormat = MP4,
    audio: Audio | None = None,
) -> Iterator[VideoWriter]:
    """Open a video file to which frames are added. It appears under its name only if the block ends without error.

    Args:
        path: the file to write; an existing file is replaced.
        fps: frames per second; the file stores the exact fraction (`frame_rate`).
        tags: text entries that are stored in the file; `read_tags` reads them. None stores none.
        crf: quality on x264's scale, from 0 (best) to 51; ignored by ProRes, which has only one quality.
        format: the file format.
        audio: the sound; None for a silent file. Longer sound is cut at the end of the video. Shorter sound leaves the
            rest of the video silent. WebP files have no sound and ignore it.

    Yields:
        The writer; call its `add` once per frame.

    Raises:
        VideoError: see `VideoWriter.add`; also if no frame was added, or the encoder fails.
    """
    path, tags = Path(path), dict(tags or {})
    try:
        with atomic_file(path) as temporary:
            writer = VideoWriter(temporary, path.name, fps, {} if format is WEBP else tags, crf, format, audio)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
            if format is WEBP and tags:
                write_webp_tags(temporary, tags)
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} cannot be encoded ({error.strerror}). Check the free disk space and the folder's permissions."
        ) from error


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    tags: Mapping[str, str] | None = None,
    crf: float = 18,
    format: VideoFormat = MP4,
    audio: Audio | None = None,
) -> int:
    """Write frames as a video file; return the number of frames written.

    Args:
        path: the file to write; an existing file is replaced.
        frames: a clip `[T, H, W, 3]`, or an iterable of frames `[H, W, 3]`; RGB, uint8 or floating point in [0, 1].
        fps: see `video_writer`.
        tags: see `video_writer`.
        crf: see `video_writer`.
        format: see `video_writer`.
        audio: see `video_writer`.

    Raises:
        VideoError: see `video_writer`.
    """
    with video_writer(path, fps, tags, crf, format, audio) as writer:
        for pixels in frames:
            writer.add(pixels)
    return writer.frames

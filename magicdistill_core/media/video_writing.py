"""Frames to video files, one at a time: mp4, WebM, ProRes and animated WebP, with sound and tags, BT.709 throughout."""

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
from .audio import LAYOUTS, Audio
from .video import EXACT
from .webp import write_webp_tags

_MAX_FPS_DENOMINATOR = 1001  # NTSC rates such as 30000/1001 stay exact
_NTSC = Fraction(1000, 1001)
_MOST_REORDERED = 16  # frames between decoding and showing, more than any encoder here asks for
_NTSC_SPELLING = 5e-4  # 23.976 and 29.97 mean 24000/1001 and 30000/1001
_BT709, _LIMITED_RANGE = 1, 1
_CRF_MAX = 51
_VP9_CRF_MAX = 63
# Sample rates that the encoder takes; others are brought to the last.
_ENCODER_RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}


@dataclass(frozen=True)
class VideoFormat:
    """A kind of file: container, encoders and pixels; `plays_anywhere` if every browser shows it."""

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
        """Whether it keeps more than 8 bits a channel."""
        return self.pixels.endswith("10le")

    @property
    def available(self) -> bool:
        """Whether this PyAV has its encoder."""
        return self.codec in av.codecs_available

    def options(self, crf: float) -> dict[str, str]:
        """The encoder's options for a quality on x264's scale, 0 (best) to 51."""
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
# Apple's players take only this spelling of the tag.
HEVC_10_BIT = VideoFormat("mp4 (hevc, 10-bit)", ".mp4", "mp4", "libx265", "yuv420p10le", "aac", codec_tag="hvc1")
WEBM = VideoFormat("webm (vp9)", ".webm", "webm", "libvpx-vp9", "yuv420p", "libopus", True)
PRORES = VideoFormat("mov (ProRes 422 HQ)", ".mov", "mov", "prores_ks", "yuv422p10le", "pcm_s16le")
WEBP = VideoFormat("webp (animated)", ".webp", "webp", "libwebp_anim", "bgra", None, True)

FORMATS = (MP4, MP4_10_BIT, HEVC_10_BIT, WEBM, PRORES, WEBP)


def frame_rate(fps: float | Fraction) -> Fraction:
    """A frame rate as the simple fraction it stands for: 29.97 is 30000/1001.

    Raises:
        VideoError: if it is not a positive number.
    """
    if not 0 < fps < math.inf:
        raise VideoError(
            f"A frame rate (fps) of {fps} is no rate, expected frames a second. Use 24, or the model's own."
        )
    exact = Fraction(fps)
    ntsc = round(exact / _NTSC) * _NTSC
    if exact != round(exact) and abs(ntsc - exact) < _NTSC_SPELLING:
        return ntsc
    return exact.limit_denominator(_MAX_FPS_DENOMINATOR)


class VideoWriter:
    """An open file that frames are added to; see `video_writer`."""

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
            raise VideoError(f"A quality (crf) of {crf} is outside of 0 (best) to {_CRF_MAX}. Use 18 if in doubt.")
        self.frames = 0
        self._name, self._format, self._crf, self._audio = name, format, crf, audio
        self._rate = frame_rate(fps)
        flags = {"mp4": {"movflags": "use_metadata_tags+faststart"}, "webp": {"loop": "0"}}
        flags["mov"] = flags["mp4"]
        # The temporary name does not end in the suffix, so the container is named.
        self._container = av.open(str(path), "w", format=format.container, options=flags.get(format.container, {}))
        self._container.metadata.update(tags)
        self._stream: av.VideoStream | None = None
        self._sound: _Sound | None = None

    def add(self, pixels: Tensor) -> None:
        """Write the next frame.

        Args:
            pixels: RGB `[H, W, 3]`, uint8, or floating point in [0, 1].

        Raises:
            VideoError: if it is no such frame, has odd sides (chroma is halved), or is of another size than the first.
        """
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
            raise VideoError(
                f"{self._name}: expected uint8 or floating point frames [H, W, 3], got {pixels.dtype} "
                f"{list(pixels.shape)}."
            )
        height, width = pixels.shape[:2]
        if self._stream is None:
            self._stream = self._open(height, width)
        elif (height, width) != (self._stream.height, self._stream.width):
            raise VideoError(
                f"{self._name}: frame {self.frames} is {width} x {height}, those before it are {self._stream.width} x "
                f"{self._stream.height}. Resize them to one size first."
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
            # Before the first packet: that is when the container is begun.
            self._sound = _Sound(self._container, self._format.audio_codec, self._audio)
        return stream

    def _samples(self, pixels: Tensor) -> tuple[NDArray[np.generic], str]:
        """A frame in the depth that the file keeps, and FFmpeg's name of that."""
        top, dtype, name = (65535, np.uint16, "rgb48le") if self._format.deep else (255, np.uint8, "rgb24")
        array = pixels.detach().cpu()
        if array.dtype == torch.uint8:
            plain = (array.int() * (top // 255)).numpy().astype(dtype)
        else:
            plain = (array.float().clamp(0, 1) * top).round().numpy().astype(dtype)
        return np.ascontiguousarray(plain), name

    def finish(self) -> None:
        """Write what the encoders still hold back.

        Raises:
            VideoError: if there was no frame.
        """
        if self._stream is None:
            raise VideoError(
                f"{self._name} cannot be written with 0 frames: a video needs at least one frame, and even sides. "
                f"Connect frames."
            )
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()

    def _mux(self, packets: list[av.Packet]) -> None:
        assert self._stream is not None
        for packet in packets:
            # x265 (4.2) takes the decoding time of clips shorter than its delay from memory that it has not written.
            if packet.pts is not None and packet.dts is not None and packet.time_base is not None:
                ahead = (packet.pts - packet.dts) * packet.time_base * self._rate
                if not 0 <= ahead <= _MOST_REORDERED:
                    packet.dts = packet.pts
            self._container.mux(packet)

    def close(self) -> None:
        """Close the file, whatever is in it."""
        self._container.close()


class _Sound:
    """The audio stream of a file, fed as far as the video has come, so that nothing piles up."""

    def __init__(self, container: av.container.OutputContainer, codec: str, audio: Audio) -> None:
        rates = _ENCODER_RATES.get(codec, (audio.rate,))
        rate = audio.rate if audio.rate in rates else rates[-1]
        self._container, self._audio = container, audio
        stream = container.add_stream(codec, rate=rate, layout=LAYOUTS[audio.channels])
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._written = 0
        self._rest = np.zeros((audio.channels, 0), np.float32)

    def write_until(self, seconds: Fraction) -> None:
        """Write as many samples as belong to the first so many seconds."""
        wanted = math.ceil(seconds * self._audio.rate) - self._written
        while self._rest.shape[1] < wanted and (chunk := next(self._audio.chunks, None)) is not None:
            self._rest = np.concatenate([self._rest, chunk], axis=1)
        samples, self._rest = self._rest[:, :wanted], self._rest[:, wanted:]
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples), format="fltp", layout=LAYOUTS[self._audio.channels]
            )
            frame.sample_rate, frame.time_base = self._audio.rate, Fraction(1, self._audio.rate)
            frame.pts = self._written
            self._container.mux(self._stream.encode(frame))
            self._written += samples.shape[1]

    def finish(self) -> None:
        """Write what the encoder still holds back."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def video_writer(
    path: str | Path,
    fps: float | Fraction,
    tags: Mapping[str, str] | None = None,
    crf: float = 18,
    format: VideoFormat = MP4,
    audio: Audio | None = None,
) -> Iterator[VideoWriter]:
    """A video that frames are added to; complete under its name when the block ends without error, or not at all.

    Args:
        fps: frames a second; the file has the exact fraction (`frame_rate`).
        tags: text kept in the file, read back by `read_tags`.
        crf: quality on x264's scale, 0 (best) to 51; ProRes has one quality only.
        audio: cut where the video ends; left out by WebP, which holds none.

    Raises:
        VideoError: as `VideoWriter.add`; if there is no frame, or the encoder fails.
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
            f"{path} cannot be encoded ({error.strerror}). Check the free disk space and the folder."
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
    """Write frames, a clip `[T, H, W, 3]` or one after the other, as a video; see `video_writer`.

    Returns:
        How many frames were written.
    """
    with video_writer(path, fps, tags, crf, format, audio) as writer:
        for pixels in frames:
            writer.add(pixels)
    return writer.frames

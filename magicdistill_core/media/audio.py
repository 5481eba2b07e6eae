"""The sound of a video, from a tensor or a file. It is processed in chunks, so memory does not grow with its length."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import VideoError
from .clock import SHORTEST_GAP, Clock, Pace
from .opening import Media, Source

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_CHUNK = 4096


@dataclass(frozen=True)
class Audio:
    """Sound that starts together with its video.

    Attributes:
        rate: samples per second.
        channels: number of channels.
        chunks: float32 samples `[channels, n]`; can be iterated once.
    """

    rate: int
    channels: int
    chunks: Iterator[NDArray[np.float32]]


def waveform_audio(waveform: Tensor, rate: int) -> Audio:
    """Return samples as the sound of a video. NaN becomes silence, because encoders refuse it.

    Args:
        waveform: `[channels, T]`, or a batch `[B, channels, T]` of which the first is used; floating point in [-1, 1],
            or whole numbers, which use the full range of their type (uint8 is silent at 128).
        rate: samples per second.

    Raises:
        VideoError: if the shape is another, the number of channels is not 1, 2 or 6, the rate is less than 1, or the
            samples are no real numbers.
    """
    channels_first = waveform[0] if waveform.ndim == 3 and len(waveform) else waveform
    numbers = not waveform.is_complex() and waveform.dtype != torch.bool
    if channels_first.ndim != 2 or channels_first.shape[0] not in LAYOUTS or rate < 1 or not numbers:
        raise VideoError(
            f"The audio has the shape {list(waveform.shape)} ({waveform.dtype}) at {rate} samples per second, expected "
            f"[batch, channels, samples] of real numbers with 1, 2 or 6 channels. Mix it down to stereo first."
        )

    def chunks() -> Iterator[NDArray[np.float32]]:
        for part in channels_first.split(_CHUNK, dim=1):
            yield np.ascontiguousarray(_samples(part.detach()).clamp(-1, 1).cpu().numpy())

    return Audio(rate, channels_first.shape[0], chunks())


def _samples(part: Tensor) -> Tensor:
    """Return samples of any real number type in float32."""
    if part.is_floating_point():
        return part.float().nan_to_num(nan=0.0)
    limits = torch.iinfo(part.dtype)
    silence = (limits.max + 1) // 2 if limits.min == 0 else 0
    return ((part.double() - silence) / (limits.max - silence)).float()


def read_audio(source: Source, start: float = 0.0, duration: float = 0.0) -> Audio | None:
    """Open the sound of a file for streaming; None if the file has no sound that can be decoded.

    Other numbers of channels than 1, 2 and 6 are mixed to stereo. Where sound is missing for more than 0.2 seconds, it
    is silent, so it stays with the picture (`Clock`).

    Args:
        source: a file's path, or its bytes.
        start: where the sound begins, in seconds from the file's beginning, as in a player: from the first moment of
            the stream that begins first. To read the sound of a video, pass `Video.start`.
        duration: seconds to read; 0 reads to the end.

    Raises:
        VideoError: if the file cannot be opened; while iterating, if the sound is damaged.
    """
    media = Media(source, "sound")
    # A stream has no codec context if FFmpeg has no decoder for it.
    stream = next((s for s in media.container.streams.audio if s.codec_context is not None and s.rate), None)
    if stream is None:
        media.close()
        return None
    channels = stream.channels if stream.channels in LAYOUTS else 2
    chunks = _placed(_decode(media, stream, channels, start), stream.rate, channels, start)
    return Audio(stream.rate, channels, chunks if not duration else _limited(chunks, round(duration * stream.rate)))


def _decode(
    media: Media, stream: av.AudioStream, channels: int, start: float
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield chunks with their times in seconds from the file's beginning; the first contains `start`, or is later."""
    rate, container = stream.rate, media.container
    resampler = av.AudioResampler(format="fltp", layout=LAYOUTS[channels], rate=rate)
    clock: Clock | None = None
    with media:
        try:
            target = round((start + media.origin) / stream.time_base)
            if start and target > (stream.start_time or 0):
                container.seek(target, stream=stream)
            for frame in (frame for packet in media.packets(stream) for frame in stream.codec_context.decode(packet)):
                if clock is None:
                    clock = Clock.of(container, Pace(Fraction(rate, frame.samples), frame.samples / rate))
                time, _ = clock.tick(None if frame.time is None else frame.time - media.origin)
                for part in resampler.resample(frame):
                    yield time, part.to_ndarray()
                    time += part.samples / rate
        # PyAV raises a ValueError if the format changes in the middle.
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VideoError(
                f"The sound of the video cannot be decoded ({reason}). The file is damaged. Copy it again, or use "
                f"other audio."
            ) from error


def _placed(
    chunks: Iterator[tuple[float, NDArray[np.float32]]], rate: int, channels: int, start: float
) -> Iterator[NDArray[np.float32]]:
    """Yield the samples from the time `start`, and silence where the file has no sound."""
    position: int | None = None
    for time, samples in chunks:
        place = round((time - start) * rate)
        if position is None:
            if place + samples.shape[1] <= 0:
                continue
            samples = samples[:, max(0, -place) :]
            position = 0
            missing = max(0, place)
        else:
            missing = place - position if place - position > SHORTEST_GAP * rate else 0
        for first in range(0, missing, _CHUNK):
            yield np.zeros((channels, min(_CHUNK, missing - first)), np.float32)
        yield samples
        position += missing + samples.shape[1]


def _limited(chunks: Iterator[NDArray[np.float32]], left: int) -> Iterator[NDArray[np.float32]]:
    """Yield the first `left` samples."""
    for chunk in chunks:
        yield chunk[:, :left]
        left -= chunk.shape[1]
        if left <= 0:
            return

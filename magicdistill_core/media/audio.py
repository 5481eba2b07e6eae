"""The sound of a video, from a tensor or a file. It is processed in chunks, so memory does not grow with its length."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import VideoError

Source = str | Path | io.BytesIO
"""A media file: its path, or its bytes."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_CHUNK = 4096


def medium(source: Source) -> str | io.BytesIO:
    """Return what PyAV can open: the path as text, or a new reader of the bytes.

    Each call makes a new reader, so several readers can be at different positions.

    Args:
        source: a file's path, or its bytes.
    """
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else str(source)


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

    Other numbers of channels than 1, 2 and 6 are mixed to stereo.

    Args:
        source: a file's path, or its bytes.
        start: where the sound begins, in seconds on the file's own clock. A file's clock may start at any time. To read
            the sound of a video, pass `Video.start`, the time of its first frame.
        duration: seconds to read; 0 reads to the end.

    Raises:
        VideoError: while iterating, if the sound is damaged.
    """
    container = av.open(medium(source))
    # A stream has no codec context if FFmpeg has no decoder for it.
    stream = next((s for s in container.streams.audio if s.codec_context is not None and s.rate), None)
    if stream is None:
        container.close()
        return None
    channels = stream.channels if stream.channels in LAYOUTS else 2
    return Audio(stream.rate, channels, _decode(container, stream, channels, start, duration))


def _decode(
    container: av.container.InputContainer, stream: av.AudioStream, channels: int, start: float, duration: float
) -> Iterator[NDArray[np.float32]]:
    """Yield chunks from the time `start`, beginning with silence if the stream starts later."""
    rate = stream.rate
    resampler = av.AudioResampler(format="fltp", layout=LAYOUTS[channels], rate=rate)
    left = round(duration * rate) if duration else None
    begun = False
    with container:
        try:
            if start > float((stream.start_time or 0) * stream.time_base):
                container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                time = frame.time or 0.0
                for part in resampler.resample(frame):
                    samples = part.to_ndarray()
                    if not begun:
                        early = round((start - time) * rate)
                        if early >= samples.shape[1]:
                            continue
                        begun = True
                        silence = np.zeros((channels, max(0, -early)), np.float32)
                        samples = np.concatenate([silence, samples[:, max(0, early) :]], axis=1)
                    if left is not None:
                        samples = samples[:, :left]
                        left -= samples.shape[1]
                    yield samples
                    if left == 0:
                        return
        except av.FFmpegError as error:
            raise VideoError(
                f"The sound of the video cannot be decoded ({error.strerror}). The file is damaged. Copy it again, or "
                f"use other audio."
            ) from error

"""Sound beside a video: from a tensor or a file, in chunks, so that its length does not matter."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import VideoError

Source = str | Path | io.BytesIO
"""What a media file is read from."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_CHUNK = 4096


def medium(source: Source) -> str | io.BytesIO:
    """What PyAV opens for a source; of bytes a reader of its own, so that several can be at different places."""
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else str(source)


@dataclass(frozen=True)
class Audio:
    """Sound that starts with its video: samples a second, channels, and float32 chunks `[channels, n]` in one pass."""

    rate: int
    channels: int
    chunks: Iterator[NDArray[np.float32]]


def waveform_audio(waveform: Tensor, rate: int) -> Audio:
    """Sound from samples in [-1, 1].

    Args:
        waveform: `[channels, T]`, or a batch of them of which the first is taken.
        rate: samples a second.

    Raises:
        VideoError: if it is empty, or has a number of channels that files do not have.
    """
    channels_first = waveform[0] if waveform.ndim == 3 and len(waveform) else waveform
    if channels_first.ndim != 2 or channels_first.shape[0] not in LAYOUTS or rate < 1:
        raise VideoError(
            f"The audio has the shape {list(waveform.shape)} at {rate} samples a second, expected [batch, channels, "
            f"samples] with 1, 2 or 6 channels. Mix it down to stereo first."
        )

    def chunks() -> Iterator[NDArray[np.float32]]:
        for part in channels_first.split(_CHUNK, dim=1):
            yield np.ascontiguousarray(part.float().cpu().numpy())

    return Audio(rate, channels_first.shape[0], chunks())


def read_audio(source: Source, start: float = 0.0, duration: float = 0.0) -> Audio | None:
    """The sound of a file, streamed; None if it has none that can be decoded.

    Args:
        start: the time in seconds, on the file's own clock, at which the sound is to begin. Files need not begin at
            0: for the sound of a video this is `Video.start`, the time of its first frame.
        duration: seconds to read; 0 reads to the end.

    Raises:
        VideoError: while iterating, if it is damaged.
    """
    container = av.open(medium(source))
    # A stream that FFmpeg has no decoder for has no codec context.
    stream = next((s for s in container.streams.audio if s.codec_context is not None and s.rate), None)
    if stream is None:
        container.close()
        return None
    channels = stream.channels if stream.channels in LAYOUTS else 2
    return Audio(stream.rate, channels, _decode(container, stream, channels, start, duration))


def _decode(
    container: av.container.InputContainer, stream: av.AudioStream, channels: int, start: float, duration: float
) -> Iterator[NDArray[np.float32]]:
    """Chunks from the time `start` on; a stream that begins later than that is preceded by silence."""
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
                f"The sound of the video cannot be decoded ({error.strerror}). The file is damaged: copy it again, or "
                f"connect other audio."
            ) from error

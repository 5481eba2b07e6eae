"""The audio stream of a video file that is being written."""

import math
from fractions import Fraction

import av
import numpy as np

from .audio import LAYOUTS, Audio

# Sample rates that the audio encoder supports. Sound with any other rate is resampled to the last one.
_ENCODER_RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}


class SoundStream:
    """The audio stream of a file. It is written as far as the video, so neither stream has to be buffered for long."""

    def __init__(self, container: av.container.OutputContainer, codec: str, audio: Audio) -> None:
        """Add the stream to a file to which nothing has been written yet.

        Args:
            container: the open file.
            codec: FFmpeg's name of the audio encoder.
            audio: the sound.
        """
        rates = _ENCODER_RATES.get(codec, (audio.rate,))
        rate = audio.rate if audio.rate in rates else rates[-1]
        self._container, self._audio = container, audio
        stream = container.add_stream(codec, rate=rate, layout=LAYOUTS[audio.channels])
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._written = 0
        self._rest = np.zeros((audio.channels, 0), np.float32)

    def write_until(self, seconds: Fraction) -> None:
        """Write the samples up to the time `seconds`, counted from the beginning."""
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
        """Write the samples that the encoder still buffers."""
        self._container.mux(self._stream.encode(None))

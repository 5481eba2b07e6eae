"""Sound of files with odd times."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from magicdistill_core.media.audio import read_audio

RATE, CHUNK = 48000, 1200


def write_sound(path: Path, parts: Sequence[tuple[float, float]], codec: str = "pcm_s16le") -> None:
    """Write sound of a constant 0.5 from each part's beginning to its end, in seconds; nothing between the parts."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        for begin, end in parts:
            for first in range(round(begin * RATE), round(end * RATE), CHUNK):
                wave = np.full((1, CHUNK), 16384, np.int16)
                frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def samples(path: Path, start: float = 0.0, duration: float = 0.0) -> NDArray[np.float32]:
    sound = read_audio(path, start, duration)
    assert sound is not None
    return np.concatenate(list(sound.chunks), axis=1)[0]


def loud_seconds(wave: NDArray[np.float32]) -> list[float]:
    """Times at which the sound begins or ends, the end of the file included."""
    changes = np.flatnonzero(np.diff(np.abs(wave) > 0.1, prepend=False, append=False))
    return [float(round(place / RATE, 2)) for place in changes]


def test_a_sound_file_that_begins_late_begins_at_zero(tmp_path: Path) -> None:
    write_sound(tmp_path / "late.mka", [(2.0, 4.0)])
    assert loud_seconds(samples(tmp_path / "late.mka")) == [0.0, 2.0]
    assert len(samples(tmp_path / "late.mka", start=0.5)) == 1.5 * RATE
    assert len(samples(tmp_path / "late.mka", duration=1.0)) == RATE
    assert len(samples(tmp_path / "late.mka", start=0.5, duration=1.0)) == RATE


def test_missing_sound_is_silence(tmp_path: Path) -> None:
    write_sound(tmp_path / "gap.mka", [(0.0, 1.0), (3.0, 4.0)])
    assert loud_seconds(samples(tmp_path / "gap.mka")) == [0.0, 1.0, 3.0, 4.0]
    assert loud_seconds(samples(tmp_path / "gap.mka", start=0.5, duration=3.0)) == [0.0, 0.5, 2.5, 3.0]


@pytest.mark.parametrize("shift", [0.0, 100.0, 5000.0])
def test_joined_transmissions_lose_no_sound_and_get_no_pause(tmp_path: Path, shift: float) -> None:
    write_sound(tmp_path / "0.ts", [(0.0, 1.2)], "mp2")
    write_sound(tmp_path / "1.ts", [(shift, shift + 1.2)], "mp2")
    (tmp_path / "a.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    wave = samples(tmp_path / "a.ts")
    assert len(wave) / RATE == pytest.approx(2.4, abs=0.1)
    assert (np.abs(wave) > 0.1).mean() > 0.9


def test_a_short_stutter_of_the_clock_is_no_silence(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.mka", [(0.0, 1.0), (1.1, 2.1)])
    wave = samples(tmp_path / "a.mka")
    assert (np.abs(wave) > 0.1).all()
    assert len(wave) == 2 * RATE

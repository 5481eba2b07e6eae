"""Times of clips as cameras, joined files and damaged files have them; start and duration."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from magicdistill_core.errors import VideoError
from magicdistill_core.media.audio import read_audio
from magicdistill_core.media.video import read_runs, read_video

from .clips import numbers, write_clip

FPS = 24


def every(count: int, first: float = 0.0) -> list[float]:
    return [first + n / FPS for n in range(count)]


def runs(path: Path, fps: float = FPS) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for frame in read_runs(path, fps).frames:
        found.setdefault(frame.run, []).extend(numbers([frame.pixels]))
    return list(found.values())


def test_a_gap_ends_a_run_and_is_filled_only_to_stay_with_the_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", every(10) + every(10, 60))
    video = read_runs(tmp_path / "a.mkv", FPS)
    assert len(list(video.frames)) == 20
    assert "at 1 place at 60.00 s" in video.notes[0]
    assert runs(tmp_path / "a.mkv") == [list(range(10)), list(range(10, 20))]
    plain = read_video(tmp_path / "a.mkv")
    assert plain.rate == FPS
    assert numbers(plain.frames) == list(range(20))
    filled = numbers(read_video(tmp_path / "a.mkv", FPS).frames)
    assert filled == [*range(9), *[9] * (60 * FPS - 9), *range(10, 20)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (every(10) + every(10, 10 / FPS + 0.15), 1),  # a phone loses four frames
        ([n / FPS + 0.005 * (n % 3) for n in range(20)], 1),  # jitter
        ([*every(10), *[10 / FPS + n / 8 for n in range(10)]], 1),  # a phone in the dark: 8 frames per second
        (every(10) + every(10, 10 / FPS + 0.3), 2),
        ([n / 3 for n in range(20)], 1),  # 3 frames per second all the time
    ],
)
def test_variable_frame_rates_are_no_gaps(tmp_path: Path, times: list[float], expected: int) -> None:
    write_clip(tmp_path / "a.mkv", times)
    found = runs(tmp_path / "a.mkv")
    assert len(found) == expected
    assert sorted({number for run in found for number in run}) == list(range(20))


@pytest.mark.parametrize("suffix", [".mpg", ".ts"])
@pytest.mark.parametrize("shift", [0.0, 30.0, 5000.0])
def test_joined_transmissions_lose_no_frame(tmp_path: Path, suffix: str, shift: float) -> None:
    """The second part begins anew, or at another time."""
    parts = []
    for number, first in enumerate((0.0, shift)):
        path = tmp_path / f"{number}{suffix}"
        write_clip(path, every(12, first), "mpeg2video", "yuv420p", tick=Fraction(1, FPS))
        parts.append(path.read_bytes())
    (tmp_path / f"a{suffix}").write_bytes(b"".join(parts))
    assert numbers(read_video(tmp_path / f"a{suffix}").frames) == [*range(12), *range(12)]
    assert len(list(read_video(tmp_path / f"a{suffix}", FPS).frames)) == pytest.approx(24, abs=1)
    assert len(runs(tmp_path / f"a{suffix}")) == 2


def test_times_far_from_zero_and_fine_ticks(tmp_path: Path) -> None:
    write_clip(tmp_path / "late.mkv", every(12, 7200), tick=Fraction(1, 1000))
    write_clip(tmp_path / "fine.mov", every(12), "mjpeg", "yuvj420p", tick=Fraction(1, 10**7))
    for name in ("late.mkv", "fine.mov"):
        video = read_video(tmp_path / name, FPS)
        assert (video.start, numbers(video.frames)) == (0, list(range(12)))


def test_a_transmission_that_begins_between_two_key_frames(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ts"
    write_clip(whole, every(24), "libx264", "yuv420p", Fraction(1, FPS), options={"g": "12", "bf": "0", "crf": "5"})
    content = whole.read_bytes()
    # Without the first coded frames, but with the tables of the program.
    start = re.search(rb"\x47[\x41\x01]\x00[\x30-\x3f]", content)
    assert start is not None
    place = start.start() + 188 * 8
    (tmp_path / "cut.ts").write_bytes(content[: start.start()] + content[place:])
    found = numbers(read_video(tmp_path / "cut.ts").frames)
    assert found[-12:] == list(range(12, 24))


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi", ".ts", ".flv"])
@pytest.mark.parametrize("start", [0.04, 0.25, 0.51, 0.93])
def test_start_is_exact_in_every_container(tmp_path: Path, suffix: str, start: float) -> None:
    path = tmp_path / f"a{suffix}"
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    # Frames are stored in another order than they are shown, so a seek can miss some.
    write_clip(
        path, every(24), codec, "yuv420p", Fraction(1, FPS), options={"g": "6", "bf": "0" if suffix == ".avi" else "2"}
    )
    expected = [n for n in range(24) if n / FPS >= start - 0.5 / FPS]
    assert numbers(read_video(path, start=start).frames) == expected


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
@pytest.mark.parametrize(("picture", "sound"), [(2.0, 2.0), (2.0, 1.5), (2.0, 2.5)])
def test_start_and_duration_count_from_the_beginning_of_the_file(
    suffix: str, picture: float, sound: float, tmp_path: Path, write_late_clip: Callable[[Path, float, float], None]
) -> None:
    """The clip is black and silent for a second from its first picture, then white and loud."""
    path = tmp_path / f"late{suffix}"
    write_late_clip(path, picture, sound)
    origin = min(picture, sound)
    video = read_video(path, 25.0, start=0.6, duration=1.0)
    assert video.start == pytest.approx(0.6, abs=0.03)
    white = [bool(frame.float().mean() > 128) for frame in video.frames]
    assert len(white) == 25
    # In mp4 and ts, AAC begins 21 ms before its first sample.
    assert white.index(True) == pytest.approx(25 * (picture + 1 - origin - video.start), abs=1)
    audio = read_audio(path, 0.6, 1.0)
    assert audio is not None
    samples = np.concatenate(list(audio.chunks), axis=1)[0]
    assert len(samples) == 48000
    assert (np.abs(samples) > 0.1).argmax() / 48000 == pytest.approx(picture + 1 - origin - 0.6, abs=0.025)


def test_a_part_without_pictures_is_named(
    tmp_path: Path, write_late_clip: Callable[[Path, float, float], None]
) -> None:
    write_late_clip(tmp_path / "late.mkv", 2.0, 0.5)
    with pytest.raises(VideoError, match=r"no picture from 0 s to 1 s.* begin at 1\.5\d* s"):
        read_video(tmp_path / "late.mkv", duration=1.0)
    with pytest.raises(VideoError, match="no picture from 9 s"):
        read_video(tmp_path / "late.mkv", start=9.0)


def test_frames_that_a_camera_dropped_are_not_the_end(tmp_path: Path) -> None:
    """An AVI file has an empty chunk in the place of a dropped frame."""
    write_clip(tmp_path / "a.avi", every(12), "mjpeg", "yuvj444p", Fraction(1, FPS))
    content = bytearray((tmp_path / "a.avi").read_bytes())
    movi, index = content.index(b"movi"), content.index(b"idx1")
    entry = index + 8 + 16 * 5  # of frame 5: name, flags, place after "movi", size
    place, size = (int.from_bytes(content[entry + at : entry + at + 4], "little") for at in (8, 12))
    chunk = movi + place
    assert content[chunk : chunk + 4] == b"00dc"
    content[entry + 12 : entry + 16] = bytes(4)
    content[chunk + 4 : chunk + 16] = bytes(4) + b"JUNK" + (size - 8).to_bytes(4, "little")
    (tmp_path / "a.avi").write_bytes(content)
    assert numbers(read_video(tmp_path / "a.avi").frames) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    filled = numbers(read_video(tmp_path / "a.avi", FPS).frames)
    assert len(filled) == 12
    assert filled[6:] == [6, 7, 8, 9, 10, 11]


def test_impossible_rates_are_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", [0, 1000, 2000])
    with pytest.raises(VideoError, match=r"0\.001 frames per second"):
        read_video(tmp_path / "a.mkv")

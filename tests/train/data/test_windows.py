from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from magicdistill_core.errors import VideoError
from tests.magicdistill_core.media.clips import numbers, write_clip
from train.data.videos import find_videos
from train.data.windows import WindowGeometry, windows


def cut(path: Path, frames: int = 5, stride: int = 5, fps: float = 24.0) -> dict[int, list[int]]:
    """The numbers of the frames of each window, by its key."""
    return {first: numbers(window) for first, window in windows(path, WindowGeometry(frames, 32, 32, fps, stride))}


def every(count: int, first: float = 0.0) -> list[float]:
    return [first + n / 24 for n in range(count)]


@pytest.mark.parametrize(
    ("stride", "starts"), [(5, [0, 5, 12, 17]), (2, [0, 2, 4, 6, 12, 14, 16, 18]), (7, [0, 7, 12, 19]), (40, [0, 12])]
)
def test_no_window_spans_a_gap(tmp_path: Path, stride: int, starts: list[int]) -> None:
    write_clip(tmp_path / "a.mkv", every(12) + every(12, 60.0))
    assert cut(tmp_path / "a.mkv", stride=stride) == {first: list(range(first, first + 5)) for first in starts}


def test_a_damaged_time_makes_no_windows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One entry of the table of times says eight hours. FFmpeg leaves out what is shown after the file's length."""
    write_clip(tmp_path / "a.mov", every(12), "mjpeg", "yuvj444p", Fraction(1, 24))
    content = bytearray((tmp_path / "a.mov").read_bytes())
    place = content.index(b"stts") + 8
    old = content[place : place + 12]  # one entry: 12 frames of one tick
    entries = [(4, 1), (1, 24 * 3600 * 8), (7, 1)]
    size = int.from_bytes(content[place - 12 : place - 8], "big")
    assert (old[:8], size) == ((1).to_bytes(4, "big") + (12).to_bytes(4, "big"), 24)
    step = int.from_bytes(old[8:], "big")
    table = (3).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") + (step * t).to_bytes(4, "big") for n, t in entries)
    content[place : place + 12] = table
    grown = len(table) - 12
    for box in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = content.rindex(box, 0, place) - 4
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") + grown).to_bytes(4, "big")
    (tmp_path / "a.mov").write_bytes(content)  # the frames are before the index, so their places stay
    assert cut(tmp_path / "a.mov") == {0: [0, 1, 2, 3, 4]}
    assert "should have 12 frames, only 5" in caplog.text
    with pytest.raises(VideoError, match=r"too short.* 5 frames .*without a gap.* 9"):
        cut(tmp_path / "a.mov", frames=9)


def test_joined_files_give_the_windows_of_both(tmp_path: Path) -> None:
    write_clip(tmp_path / "part.mpg", every(12), "mpeg2video", "yuv420p", Fraction(1, 24), options={"q:v": "2"})
    (tmp_path / "a.mpg").write_bytes((tmp_path / "part.mpg").read_bytes() * 2)
    assert [window[0] for window in cut(tmp_path / "a.mpg").values()] == [0, 5, 0, 5]


def test_a_window_never_shows_one_frame_all_the_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clip(tmp_path / "slides.mkv", [0, 1, 2, 3])
    with pytest.raises(VideoError, match="too few frames per second"):
        cut(tmp_path / "slides.mkv", stride=24)
    write_clip(tmp_path / "slow.mkv", [n / 2 for n in range(6)])
    found = cut(tmp_path / "slow.mkv")
    assert found
    assert all(len(set(window)) > 1 for window in found.values())
    assert "windows were left out" in caplog.text
    # A single picture is a window of one frame.
    assert len(cut(tmp_path / "slides.mkv", frames=1, stride=24)) == 4


def test_really_still_frames_are_kept(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", every(12), picture=lambda _: np.full((48, 64, 3), 70, np.uint8))
    assert cut(tmp_path / "a.mkv") == {0: [7] * 5, 5: [7] * 5}


def test_notes_about_pictures_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"options": {"flags": "+ildct+ilme"}, "tick": Fraction(1, 24)}
    write_clip(tmp_path / "a.ts", every(12), "mpeg2video", "yuv420p", **settings)
    cut(tmp_path / "a.ts")
    assert "a.ts is interlaced" in caplog.text


def test_suffixes_of_cameras_are_found(tmp_path: Path) -> None:
    names = ["a.ts", "b.MTS", "c.m2ts", "d.3gp", "e.ogv", "f.vob", "g.mp4"]
    for name in [*names, "h.txt", "i.wav", "j.png"]:
        (tmp_path / name).touch()
    assert list(find_videos(tmp_path)) == sorted(names, key=str)


def test_windows_have_the_asked_size(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", every(6))
    ((_, window),) = windows(tmp_path / "a.mkv", WindowGeometry(5, 16, 32, 24.0, 5))
    assert (window.shape, window.dtype) == ((5, 16, 32, 3), torch.uint8)

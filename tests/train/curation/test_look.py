"""Looking at one video: shots, facts, and videos that cannot be read."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.magicdistill_core.media.clips import write_clip

from .scans import FACE, Marked, marked, moving, picture, write_shots

pytest.importorskip("scenedetect")

from train.curation.look import look


def test_a_row_for_each_shot(tmp_path: Path) -> None:
    write_shots(tmp_path / "a.mkv", [(0, 30), (1, 20), (2, 25)], faceless=lambda number: number >= 50)
    rows = look(tmp_path / "a.mkv", Marked())
    assert [(row["first"], row["last"], row["begins"]) for row in rows] == [
        (0, 29, "start"),
        (30, 49, "cut"),
        (50, 74, "cut"),
    ]
    assert [row["seconds"] for row in rows] == pytest.approx([30 / 24, 20 / 24, 25 / 24], abs=0.002)
    assert [row["face_share"] for row in rows] == [1, 1, 0]
    x, y, width, height = FACE
    found = [rows[0][name] for name in ("face_x", "face_y", "face_height", "face_pixels", "same_face", "faces")]
    assert found == pytest.approx([x + width / 2, y + height / 2, height, height * 96, 1, 1])
    assert (rows[0]["width"], rows[0]["height"], rows[0]["fps"], rows[0]["codec"]) == (128, 96, 24, "ffv1")
    assert not rows[0]["sound"]
    assert not rows[0]["hdr"]
    assert rows[0]["loudness"] is None
    assert all(len(row["thumbnails"]) == 4 and len(row["hashes"]) == 5 for row in rows)


def test_a_gap_in_time_begins_a_shot(tmp_path: Path) -> None:
    times = [n / 24 for n in range(24)] + [20 + n / 24 for n in range(24)]
    write_clip(tmp_path / "a.mkv", times, picture=lambda n: marked(moving(0, n), face=True))
    rows = look(tmp_path / "a.mkv", Marked())
    assert [(row["first"], row["last"], row["begins"]) for row in rows] == [(0, 23, "start"), (24, 47, "gap")]


def test_uneven_times_are_measured(tmp_path: Path) -> None:
    steps = [1 / 30 if n % 2 else 1 / 12 for n in range(40)]
    write_clip(tmp_path / "a.mkv", np.cumsum(steps).tolist(), picture=lambda n: moving(0, n))
    write_clip(tmp_path / "b.mkv", [n / 24 for n in range(40)], picture=lambda n: moving(0, n))
    assert look(tmp_path / "a.mkv", Marked())[0]["uneven"] > 0.4
    assert look(tmp_path / "b.mkv", Marked())[0]["uneven"] == 0


def with_sound(path: Path, level: float) -> None:
    rate, seconds = 48000, 2
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream("ffv1", rate=24), file.add_stream("pcm_s16le", rate=rate, layout="mono")
        video.width, video.height, video.pix_fmt = 128, 96, "bgr0"
        for number in range(24 * seconds):
            frame = av.VideoFrame.from_ndarray(moving(0, number), format="rgb24")
            file.mux(video.encode(frame))
        tone = (level * 32767 * np.sin(np.arange(rate * seconds) * 0.1)).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = rate, Fraction(1, rate), 0
        file.mux(audio.encode(sound))
        file.mux(video.encode(None))
        file.mux(audio.encode(None))


@pytest.mark.parametrize(("level", "expected"), [(0.0, -120.0), (0.5, 20 * np.log10(0.5 / np.sqrt(2)))])
def test_the_loudness_of_the_sound(tmp_path: Path, level: float, expected: float) -> None:
    with_sound(tmp_path / "a.mkv", level)
    row = look(tmp_path / "a.mkv", Marked())[0]
    assert row["sound"]
    assert row["loudness"] == pytest.approx(expected, abs=0.2)


def test_what_cannot_be_read_is_a_row_with_the_reason(tmp_path: Path) -> None:
    write_shots(tmp_path / "good.mkv", [(0, 30)])
    content = (tmp_path / "good.mkv").read_bytes()
    (tmp_path / "head.mkv").write_bytes(content[:300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video " * 50)
    (tmp_path / "renamed.mp4").write_bytes(content)  # another suffix does not matter
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    (tmp_path / "sound.wav").rename(tmp_path / "sound.mov")
    write_clip(tmp_path / "tiny.mkv", [0.0, 0.1], picture=lambda n: np.zeros((1, 1, 3), np.uint8))
    reasons = {
        name: [row.get("error") for row in look(tmp_path / name, Marked())]
        for name in ("head.mkv", "empty.mp4", "text.mp4", "sound.mov", "tiny.mkv", "gone.mp4")
    }
    for name, found in reasons.items():
        assert len(found) == 1, name
        assert name in found[0], found
    assert "1 x 1 pixels" in reasons["tiny.mkv"][0]
    assert "no video stream" in reasons["sound.mov"][0]
    assert look(tmp_path / "renamed.mp4", Marked())[0].get("error") is None


def test_what_comes_before_damage_is_kept(tmp_path: Path) -> None:
    # A file of Motion JPEG whose pictures are damaged in its last third.
    write_clip(tmp_path / "a.avi", [n / 24 for n in range(60)], "mjpeg", "yuvj420p", picture=lambda n: moving(0, n))
    content = bytearray((tmp_path / "a.avi").read_bytes())
    place = 2 * len(content) // 3
    content[place : len(content) - 4000] = bytes(len(content) - 4000 - place)
    (tmp_path / "a.avi").write_bytes(content)
    rows = look(tmp_path / "a.avi", Marked())
    good = [row for row in rows if row.get("error") is None]
    assert good
    assert 20 <= good[-1]["last"] < 59
    assert [row["shot"] for row in rows] == list(range(len(rows)))


def test_a_large_frame_is_looked_at(tmp_path: Path) -> None:
    large = np.kron(picture(0, 1080, 1920), np.ones((4, 4, 1), np.uint8))
    write_clip(tmp_path / "a.mkv", [0.0, 0.5], "mjpeg", "yuvj420p", picture=lambda n: large)
    row = look(tmp_path / "a.mkv", Marked())[0]
    assert (row["width"], row["height"]) == (7680, 4320)

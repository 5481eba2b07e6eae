"""Scanning with other processes: killed and continued, crashing decoders, wrong files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magicdistill_core.errors import VideoError
from magicdistill_core.media.video import read_image
from magicdistill_core.media.video_writing import write_video

from .crashing import begin_without_network, crash_at_one

pytest.importorskip("pyarrow")
pytest.importorskip("scenedetect")

import train.curation.scan
from train.curation.manifest import read_manifest
from train.curation.packages import CurationError
from train.curation.scan import scan


@pytest.fixture(scope="module")
def videos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short videos of a real face, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    face = read_image(shared_data / "stills" / "nasa_astronaut_512.png")[:448, 32:480]
    for number in range(4):
        frames = [face[: 416 + 2 * n, 4 * number : 4 * number + 416].narrow(0, 0, 416) for n in range(12)]
        write_video(folder / f"{number}.mp4", iter(frames), 24)
    (folder / "text.mp4").write_text("no video")
    return folder


def shown(manifest: Path) -> list[dict]:
    """The rows of a manifest without their places in its files."""
    return [{k: v for k, v in row.items() if k not in ("part", "place")} for row in read_manifest(manifest).rows]


@pytest.mark.slow
def test_a_scan_that_was_killed_continues(
    videos: Path, landmarker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.curation.scan, "_PART_SECONDS", 0.0)
    report = scan(videos, tmp_path / "whole", landmarker, processes=2)
    assert (report.added, report.shots, report.damaged) == (5, 4, 1)
    rows = shown(tmp_path / "whole")
    assert [row["video"] for row in rows] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "text.mp4"]
    assert all(row["face_share"] == 1 for row in rows[:4])
    assert "text.mp4 cannot be read" in rows[4]["error"]
    program = (
        "import sys, train.curation.scan as s; from pathlib import Path; s._PART_SECONDS = 0.0\n"
        "if __name__ == '__main__': s.scan(*map(Path, sys.argv[1:4]))"
    )
    (tmp_path / "program.py").write_text(program)
    arguments = [sys.executable, tmp_path / "program.py", videos, tmp_path / "killed", landmarker]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("killed/part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    known = len(shown(tmp_path / "killed"))
    assert known
    report = scan(videos, tmp_path / "killed", landmarker)
    assert report.added == 5 - known
    assert shown(tmp_path / "killed") == rows


def test_a_decoder_that_crashes_costs_one_video(
    videos: Path, landmarker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.curation.scan, "_look", crash_at_one)
    monkeypatch.setattr(train.curation.scan, "_begin", begin_without_network)
    report = scan(videos, tmp_path / "m", landmarker, processes=2)
    assert (report.added, report.damaged) == (5, 1)
    errors = {row["video"]: row["error"] for row in shown(tmp_path / "m")}
    assert "crash" in errors.pop("1.mp4")
    assert errors == dict.fromkeys(("0.mp4", "2.mp4", "3.mp4", "text.mp4"))


def test_a_file_that_is_no_landmarker_is_refused_before_the_scan(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    (tmp_path / "faces.task").write_bytes(b"no network")
    with pytest.raises(CurationError, match="is no face landmarker"):
        scan(videos, tmp_path / "m", tmp_path / "faces.task")
    with pytest.raises(CurationError, match="does not exist"):
        scan(videos, tmp_path / "m", tmp_path / "gone.task")
    with pytest.raises(VideoError, match="does not exist"):
        scan(tmp_path / "nowhere", tmp_path / "m", tmp_path / "faces.task")
    assert not (tmp_path / "m").exists()

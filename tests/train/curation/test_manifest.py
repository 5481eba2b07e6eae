"""The manifest: parts, continuing, and damage."""

from pathlib import Path

import pytest

from .scans import scanned, write_shots

pytest.importorskip("pyarrow")

from train.curation.manifest import ManifestWriter, read_manifest
from train.curation.packages import CurationError

SETTINGS = {"faces_sha256": "marked"}


def row(video: str, shot: int = 0, **values: object) -> dict:
    return {"video": video, "bytes": 3, "sha256": "aa", "shot": shot, "seconds": 1.0} | values


def test_rows_come_back_in_the_order_of_videos_and_shots(tmp_path: Path) -> None:
    writer = ManifestWriter(tmp_path / "m", tmp_path, SETTINGS)
    writer.add([row("b", 1), row("b", 0)])
    writer.add([row("a", thumbnails=[b"one", b"two"], hashes=[2**64 - 1])])
    scan = read_manifest(tmp_path / "m")
    assert [(found["video"], found["shot"]) for found in scan.rows] == [("a", 0), ("b", 0), ("b", 1)]
    assert scan.rows[0]["hashes"] == [2**64 - 1]
    assert scan.rows[1]["text"] is None
    assert scan.thumbnails(scan.rows) == [[b"one", b"two"], [], []]


def test_a_video_that_changed_has_only_its_new_rows(tmp_path: Path) -> None:
    writer = ManifestWriter(tmp_path / "m", tmp_path, SETTINGS)
    writer.add([row("a", 0), row("a", 1), row("b")])
    again = ManifestWriter(tmp_path / "m", tmp_path, SETTINGS)
    assert again.known["a"].sha256 == "aa"
    again.add([row("a", 0, sha256="bb")])
    assert [(r["video"], r["sha256"]) for r in read_manifest(tmp_path / "m").rows] == [("a", "bb"), ("b", "aa")]


def test_a_scan_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    ManifestWriter(tmp_path / "m", tmp_path, SETTINGS)
    with pytest.raises(CurationError, match=r"faces_sha256 marked .now: other"):
        ManifestWriter(tmp_path / "m", tmp_path, {"faces_sha256": "other"})
    with pytest.raises(CurationError, match="videos"):
        ManifestWriter(tmp_path / "m", tmp_path / "others", SETTINGS)


def test_damage_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no manifest"):
        read_manifest(tmp_path)
    writer = ManifestWriter(tmp_path / "m", tmp_path, SETTINGS)
    with pytest.raises(CurationError, match="no rows"):
        read_manifest(tmp_path / "m")
    writer.add([row("a")])
    (tmp_path / "m" / "part-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CurationError, match=r"part-00000.parquet cannot be read.*Delete"):
        read_manifest(tmp_path / "m")
    (tmp_path / "m" / "scan.json").write_text("{}")
    with pytest.raises(CurationError, match="scan again"):
        read_manifest(tmp_path / "m")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    ManifestWriter(tmp_path, tmp_path, SETTINGS)
    header = (tmp_path / "scan.json").read_text()
    (tmp_path / "scan.json").write_text(header.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CurationError, match="Update"):
        read_manifest(tmp_path)


def test_a_scan_of_real_files_has_their_identity(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_shots(tmp_path / "videos" / "a.mkv", [(0, 12), (1, 12)])
    rows = read_manifest(scanned(tmp_path / "m", tmp_path / "videos")).rows
    assert [r["shot"] for r in rows] == [0, 1]
    assert {r["bytes"] for r in rows} == {(tmp_path / "videos" / "a.mkv").stat().st_size}

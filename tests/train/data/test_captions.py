"""Captions of videos in text files and tables, and tables that do not match the videos."""

import importlib.util
import json
from pathlib import Path

import pytest

import train.data.captions
from train.data.captions import CaptionError, find_captions

EXPECTED = {"a.mp4": "turns left, speaks", "deeper/b.mov": "", "c.webm": 'says "no",\nthen blinks'}


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / "videos" / name for name in EXPECTED}
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return found


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_a_table_names_videos_by_relative_or_absolute_path(
    suffix: str, tmp_path: Path, videos: dict[str, Path]
) -> None:
    (first, one), (second, two), (third, three) = EXPECTED.items()
    rows: list[dict[str, object]] = [
        {"video": f"./{second}", "caption": two, "fps": "24"},
        {"video": str(videos[first]), "caption": f" {one}\n", "fps": "24"},
        {"video": third, "caption": three, "fps": "24"},
    ]
    table = write(tmp_path / f"table{suffix.lower()}", rows)
    assert find_captions(videos, table.rename(tmp_path / f"table{suffix}")) == EXPECTED


def test_paths_of_a_table_may_be_spelt_in_other_ways(tmp_path: Path, videos: dict[str, Path]) -> None:
    """The videos are in a folder with a link to it, which is named by a path that goes up."""
    folder, link = tmp_path / "videos", tmp_path / "link"
    link.symlink_to(folder)
    (first, one), (second, two), (third, three) = EXPECTED.items()
    rows: list[dict[str, object]] = [
        {"video": str(folder / first), "caption": one},
        {"video": f"deeper/../{second}", "caption": two},
        {"video": f"{link}//{third}", "caption": three},
    ]
    through = {name: folder / ".." / "link" / name for name in videos}
    assert find_captions(through, write(tmp_path / "t.jsonl", rows)) == EXPECTED


def test_text_files_next_to_the_videos(videos: dict[str, Path]) -> None:
    assert find_captions(videos) is None
    for name, path in videos.items():
        path.with_suffix(".txt").write_text(f"{EXPECTED[name]}\n", encoding="utf-8-sig")
    assert find_captions(videos) == EXPECTED
    videos["c.webm"].with_suffix(".txt").unlink()
    with pytest.raises(CaptionError, match=r"1 of 3 videos have no text file next to them: c\.webm\. Every video"):
        find_captions(videos)
    videos["c.webm"].with_suffix(".txt").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(CaptionError, match=r"c\.txt cannot be read .*UTF-8"):
        find_captions(videos)


ROWS: list[dict[str, object]] = [{"video": name, "caption": caption} for name, caption in EXPECTED.items()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], r"2 of 3 videos have no row in .*t\.jsonl: deeper/b\.mov, c\.webm\. .*an empty caption is allowed"),
        ([*ROWS, {"video": "d.mp4", "caption": ""}], r"names 1 videos that are not in the folder of videos: d\.mp4"),
        ([*ROWS, ROWS[0]], r"Line 4 of .* names a\.mp4, which an earlier row names too"),
        (
            [{"file": "a.mp4", "text": "x"}],
            r"Line 1 of .* has the columns file, text, .*Expected the columns video and",
        ),
        ([{"video": "a.mp4", "caption": None}], "caption None.*Expected the columns video and caption, with a text"),
    ],
)
def test_a_table_that_does_not_match_the_videos_is_refused(
    rows: list[dict[str, object]], message: str, tmp_path: Path, videos: dict[str, Path]
) -> None:
    with pytest.raises(CaptionError, match=message):
        find_captions(videos, write(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.xlsx", "", r"t\.xlsx\. Expected a file whose name ends in \.jsonl, \.csv, \.parquet"),
        ("absent.csv", None, "does not exist"),
        ("t.jsonl", '{"video": "a.mp4"', "Line 1 of .* is no JSON"),
        ("t.jsonl", '["a.mp4", "x"]', "Line 1 of .*expected an object"),
        ("t.csv", "a.mp4,turns left\n", "no row in|columns"),
        ("t.csv", 'video,caption\na.mp4,"x" y\n', "cannot be read"),
    ],
)
def test_unreadable_tables_are_refused(
    name: str, text: str | None, message: str, tmp_path: Path, videos: dict[str, Path]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CaptionError, match=message):
        find_captions(videos, tmp_path / name)


def test_parquet_without_its_reader_names_the_package(
    tmp_path: Path, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").touch()
    monkeypatch.setattr(train.data.captions, "find_spec", lambda name: None)
    with pytest.raises(CaptionError, match="pip install pyarrow"):
        find_captions(videos, tmp_path / "t.parquet")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path, videos: dict[str, Path]) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CaptionError, match=r"t\.parquet cannot be read"):
        find_captions(videos, tmp_path / "t.parquet")

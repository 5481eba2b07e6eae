"""Source videos are known by their contents."""

import json
from pathlib import Path

import pytest
import torch

from train.data import contents
from train.data.contents import content_of
from train.data.dataset import LatentDataset
from train.data.dataset_writer import LatentWriter

from .test_dataset import index, sample
from .test_prepare import clip, keys, run


def test_equal_contents_are_equal_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_PART_BYTES", 10)
    for size in (0, 1, 159, 160, 161, 1000):
        data = bytes(number % 251 for number in range(size))
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(data)
        assert content_of(tmp_path / "a") == content_of(tmp_path / "b")
        (tmp_path / "b").write_bytes(data + b"x")
        assert content_of(tmp_path / "a") != content_of(tmp_path / "b")
        assert content_of(tmp_path / "a") == content_of(tmp_path / "b", size)
        for changed in {0, size - 1} if size else ():
            (tmp_path / "b").write_bytes(data[:changed] + b"\xff" + data[changed + 1 :])
            assert content_of(tmp_path / "a") != content_of(tmp_path / "b")


def test_reading_is_bounded_for_a_file_of_a_terabyte(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)
    assert content_of(tmp_path / "a").bytes == 2**40


def test_other_clips_under_the_same_names_are_added(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a" / "0001.mp4", 5)
    clip(tmp_path / "b" / "0001.mp4", 9)
    run(tmp_path / "a", tmp_path / "out", taehv_file)
    report = run(tmp_path / "b", tmp_path / "out", taehv_file)
    assert (report["added"], report["total"], report["already_in"]) == (1, 2, 0)
    first, second = keys(tmp_path / "out")
    assert first == "0001.mp4#0"
    assert second.startswith("0001.mp4@")
    data = LatentDataset(tmp_path / "out")
    assert not torch.equal(data.latents([0]), data.latents([1]))
    for folder in ("a", "b"):  # both are known now
        report = run(tmp_path / folder, tmp_path / "out", taehv_file)
        assert (report["added"], report["already_in"]) == (0, 1)


def test_renamed_clips_are_in_already_and_copies_side_by_side_are_two(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "in" / "a.mp4", 5)
    (tmp_path / "in" / "copy.mp4").write_bytes((tmp_path / "in" / "a.mp4").read_bytes())
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert (report["added"], report["already_in"]) == (2, 0)
    (tmp_path / "in" / "a.mp4").rename(tmp_path / "in" / "z.mp4")
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert (report["added"], report["already_in"], report["total"]) == (0, 2, 2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "copy.mp4").rename(tmp_path / "elsewhere" / "b.mp4")
    report = run(tmp_path / "elsewhere", tmp_path / "out", taehv_file)
    assert (report["added"], report["already_in"], report["total"]) == (0, 1, 2)


def test_a_clip_that_was_copied_only_in_part_is_continued(tmp_path: Path, taehv_file: Path) -> None:
    """Matroska can be read up to the point to which it was copied."""
    clip(tmp_path / "whole.mkv", 29)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.mkv"
    path.write_bytes(whole[: len(whole) * 3 // 5])
    run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert 0 < len(keys(tmp_path / "out")) < 5
    path.write_bytes(whole)
    run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert keys(tmp_path / "out") == [f"a.mkv#{start}" for start in range(0, 25, 5)]


def test_datasets_of_earlier_versions_are_continued_by_name(
    tmp_path: Path, taehv_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip(tmp_path / "in" / "a.mp4", 5)
    run(tmp_path / "in", tmp_path / "out", taehv_file)
    path = tmp_path / "out" / "dataset.json"
    stored = json.loads(path.read_text())
    del stored["contents"]
    path.write_text(json.dumps(stored))
    clip(tmp_path / "in" / "b.mp4", 9)
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert (report["added"], report["already_in"]) == (1, 1)
    assert "1 of its videos are known only by their names" in caplog.text
    assert list(json.loads(path.read_text())["contents"]) == ["b.mp4"]


def test_fields_of_a_newer_version_are_kept(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        writer.append("a", *sample(0))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"captions": {"a": "a face"}}))
    with LatentWriter(tmp_path, index()) as writer:
        writer.append("b", *sample(1))
    assert json.loads(path.read_text())["captions"] == {"a": "a face"}
    assert len(LatentDataset(tmp_path)) == 2

"""Which files of a folder are videos: linked folders count, hidden files do not."""

from pathlib import Path

import pytest

from magicdistill_core.errors import VideoError
from train.data.videos import find_videos


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_linked_folders_are_searched_once_and_end(tmp_path: Path) -> None:
    videos, disk = tmp_path / "videos", tmp_path / "disk"
    touch(videos / "own.mp4", videos / "real" / "b.mp4", disk / "c.mp4", disk / "deep" / "d.mp4")
    (videos / "a_link_to_real").symlink_to("real")
    (videos / "more").symlink_to(disk)
    (disk / "deep" / "back").symlink_to(videos)
    (videos / "loop").symlink_to(".")
    (videos / "again").symlink_to(disk / "deep")
    found = find_videos(videos)
    assert "real/b.mp4" in found
    assert len(found) == 4
    assert {path.resolve() for path in found.values()} == {
        videos / "own.mp4",
        videos / "real" / "b.mp4",
        disk / "c.mp4",
        disk / "deep" / "d.mp4",
    }


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "a.mp4")
    (tmp_path / "videos").symlink_to("disk")
    assert find_videos(tmp_path / "videos") == {"a.mp4": tmp_path / "videos" / "a.mp4"}


def test_links_that_lead_nowhere_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "unmounted").symlink_to("/missing/disk")
    (tmp_path / "b.mp4").symlink_to("/missing/b.mp4")
    # A link to a video is tried, so preparation reports it as skipped.
    assert list(find_videos(tmp_path)) == ["a.mp4", "b.mp4"]
    assert "unmounted leads to /missing/disk" in caplog.text


def test_files_of_the_system_are_left_out(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.mp4", ".DS_Store", "._a.mp4", "Thumbs.db", ".Trash-1000/files/old.mp4")))
    (tmp_path / "folder.mp4").mkdir()
    touch(tmp_path / "folder.mp4" / "b.webm")
    assert list(find_videos(tmp_path)) == ["a.mp4", "folder.mp4/b.webm"]
    assert list(find_videos(tmp_path / ".Trash-1000")) == ["files/old.mp4"]  # the user names it
    touch(tmp_path / "other" / "._b.mp4")
    with pytest.raises(VideoError, match="no video"):
        find_videos(tmp_path / "other")

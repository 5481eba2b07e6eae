"""Outputs that cannot be written are refused, and the check leaves nothing behind."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from magicdistill_core.errors import OutputError
from magicdistill_core.writable import check_output_file, check_output_folder


def test_a_possible_output_is_accepted_and_not_created(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "deeper")
    check_output_file(tmp_path / "new" / "video.mp4")
    (tmp_path / "old.txt").write_text("kept")
    check_output_file(tmp_path / "old.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "kept"


def test_a_relative_path_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output_file(Path("video.mp4"))
    check_output_folder(Path("out"))
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(OutputError, match=r"file is a file, expected a folder"):
            check_output_folder(path)
    with pytest.raises(OutputError, match=r"file is a file, expected a folder"):
        check_output_file(tmp_path / "file" / "x.mp4")


def test_a_folder_where_a_file_is_needed_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output_file(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOSPC])
def test_folders_of_others_and_read_only_or_full_disks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Tests may run as root, whom permissions do not stop.
    def refuse(**arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)):
        check_output_folder(tmp_path / "x")


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing/target")
    with pytest.raises(OutputError, match="No such file"):
        check_output_folder(tmp_path / "link" / "x")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        check_output_file(tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match="too long"):
        check_output_folder(tmp_path / ("x" * 300) / "run")

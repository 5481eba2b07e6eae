"""Users without a name, without a home folder, or without a folder for temporary files."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from train import surroundings

NAMES = ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME", "TRITON_HOME", "MPLCONFIGDIR")
NOBODY = 54321

# What PyTorch and Triton look for, in a process that becomes a user without an entry in passwd.
_LOOK = f"""
import getpass, os, pathlib, pwd, tempfile
from train.surroundings import complete_surroundings
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
complete_surroundings()
for name in (getpass.getuser(), pathlib.Path.home(), os.environ["TRITON_HOME"], os.environ["MPLCONFIGDIR"]):
    print(name)
tempfile.NamedTemporaryFile(dir=os.environ["TRITON_HOME"]).close()
"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user id without an entry in passwd and without environment; returns the folder of temporary files."""
    for name in NAMES:
        # Set first, so that what the code sets is removed afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_name_and_a_home_gets_both(nobody: Path) -> None:
    surroundings.complete_surroundings()
    assert os.environ["USER"] == f"user-{NOBODY}"
    # In a folder that belongs to another user, here the one who runs the tests, nothing is kept.
    assert Path(os.environ["HOME"]).parent == nobody
    assert Path(os.environ["HOME"]) != nobody / f"magicdistill-{NOBODY}"


@pytest.mark.parametrize("home", ["missing", "locked"])
def test_a_home_that_cannot_be_written_keeps_its_name(nobody: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold the login of W&B. Only caches go elsewhere; those that the user has set stay."""
    monkeypatch.setenv("HOME", str(nobody / home))
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    if home == "locked":
        (nobody / home).mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != nobody / home)
    surroundings.complete_surroundings()
    assert os.environ["HOME"] == str(nobody / home)
    assert os.environ["MPLCONFIGDIR"] == "/mine"
    assert Path(os.environ["TRITON_HOME"]).is_dir()


def test_nothing_is_set_for_usual_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "me")
    before = dict(os.environ)
    surroundings.complete_surroundings()
    assert dict(os.environ) == before


def test_a_missing_folder_for_temporary_files_is_one_paragraph(
    magicdistill: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    status, _, err = magicdistill("inspect", tmp_path)
    assert status == 2
    assert "TMPDIR" in err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_real_process_without_an_entry_in_passwd() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    # A new folder, because other users may not enter those of pytest.
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o777)
    environment |= {"TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = f"{folder}/magicdistill-{NOBODY}"
    assert done.stdout.split() == [f"user-{NOBODY}", own, own, own]
    shutil.rmtree(folder)

"""A folder that one process writes is refused to others; a killed process leaves no lock."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from magicdistill_core.errors import OutputError
from train import folder_lock as module
from train.folder_lock import LOCK_NAME, FolderInUseError, Holder, folder_lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from train.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), "another program"):
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.write(1, b"forked")
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process(folder: Path, mode: str = "plain") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(folder), mode]
    # A group of its own, so that its forked child can be killed too.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert process.stdout is not None
    try:
        assert "held" in process.stdout.readline()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(module, "_DEAD_SECONDS", 0.5)
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.05)


@pytest.fixture
def no_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def write_holder(folder: Path, **changes: object) -> Holder:
    holder = dataclasses.replace(Holder("training"), **changes)  # type: ignore[arg-type]
    (folder / LOCK_NAME).write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def test_a_folder_is_free_again_after_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for _ in range(2):
        with folder_lock(folder, "work"):
            assert (folder / LOCK_NAME).exists()
        assert not list(folder.iterdir())


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        with (
            pytest.raises(FolderInUseError, match=rf"another program, process {process.pid} on this machine") as raised,
            folder_lock(tmp_path, "work"),
        ):
            pass
        written = json.loads((tmp_path / LOCK_NAME).read_text())
        assert written["since"] in str(raised.value)
        assert written["machine"] in str(raised.value)


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, mode: str) -> None:
    with other_process(tmp_path, mode) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()
        begun = time.monotonic()
        with folder_lock(tmp_path, "work"):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
        assert time.monotonic() - begun < 5


def test_processes_that_start_at_once_get_one_lock(tmp_path: Path) -> None:
    outcomes: list[str] = []
    together, end = threading.Barrier(8), threading.Event()

    def work() -> None:
        together.wait()
        try:
            with folder_lock(tmp_path, "work"):
                outcomes.append("held")
                end.wait(10)
        except FolderInUseError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 8 and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 7]


@pytest.mark.usefixtures("fast")
def test_a_holder_on_another_machine_that_is_at_work_is_told_apart(tmp_path: Path) -> None:
    write_holder(tmp_path, boot="another", machine="node07", process=3)
    end = threading.Event()

    def touch() -> None:
        while not end.wait(0.05):
            os.utime(tmp_path / LOCK_NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with (
            pytest.raises(FolderInUseError, match=r"process 3 on another machine \(node07\)"),
            folder_lock(tmp_path, "work"),
        ):
            pass
    finally:
        end.set()
        thread.join()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == 3


@pytest.mark.usefixtures("fast")
def test_a_holder_on_another_machine_that_is_dead_loses_the_lock(tmp_path: Path) -> None:
    write_holder(tmp_path, boot="another")
    begun = time.monotonic()
    with folder_lock(tmp_path, "work"):
        assert time.monotonic() - begun > 0.3
    write_holder(tmp_path, boot="another")
    os.utime(tmp_path / LOCK_NAME, (1e9, 1e9))
    begun = time.monotonic()
    with folder_lock(tmp_path, "work"):
        assert time.monotonic() - begun < 0.3


@pytest.mark.usefixtures("fast", "no_system_locks")
def test_a_file_system_without_locks_is_guarded_by_touches(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "first"):
        with pytest.raises(FolderInUseError, match="first"), folder_lock(tmp_path, "second"):
            pass
        time.sleep(0.6)
        with pytest.raises(FolderInUseError, match="first"), folder_lock(tmp_path, "second"):
            pass
    with folder_lock(tmp_path, "third"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fast", "no_system_locks")
def test_a_file_system_without_locks_is_free_some_time_after_a_kill(tmp_path: Path) -> None:
    write_holder(tmp_path)
    with folder_lock(tmp_path, "work"):
        pass


@pytest.mark.usefixtures("fast")
def test_a_lock_that_another_machine_took_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with folder_lock(tmp_path, "work"):
        write_holder(tmp_path, boot="another", machine="node07")
        time.sleep(0.3)
    assert "also written by training" in caplog.text
    assert "node07" in caplog.text
    assert (tmp_path / LOCK_NAME).exists()  # it is the other machine's


@pytest.mark.parametrize("text", ["", "{", "[]", '{"work": 1}'])
def test_a_damaged_lock_file_locks_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with folder_lock(tmp_path, "work"):
        pass


def test_a_deleted_lock_file_does_not_disturb_its_holder(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "work"):
        (tmp_path / LOCK_NAME).unlink()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"), folder_lock(tmp_path / "file" / "x", "work"):
        pass
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(OutputError, match="lock file"), folder_lock(tmp_path, "work"):
        pass

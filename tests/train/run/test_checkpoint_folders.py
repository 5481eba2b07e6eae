"""Files of other people between the checkpoints of a run, and a disk that is full."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import train.run.checkpoints
from magicdistill_core.errors import CheckpointError
from tests.makers import json_lines
from train.run import checkpoint_folders, checkpoints
from train.run.checkpoint_folders import go_back, healthy_updates
from train.run.disk_space import check_room, is_full
from train.run.rollback import Rollback
from train.run_folder import checkpoint_folder, checkpoint_updates, read_manifest
from train.watch.report import write_report


def save(run: Path, update: int, *, measure: float | None = None, **changes: object) -> None:
    """Save a checkpoint of one file, without networks, and store its measure."""

    def export(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_bytes(bytes(1000 + update))

    settings = {"keep": 1, "since": 0, "healthy": True, "notes": {}} | changes
    checkpoints.save(run, {}, export, update=update, **settings)  # type: ignore[arg-type]
    if measure is not None:
        checkpoints.record_measure(run, update, measure, **settings)  # type: ignore[arg-type]


def test_the_best_is_the_lowest_measured_healthy_checkpoint_since_an_update(tmp_path: Path) -> None:
    """Also if it is old, while newer ones are removed. A checkpoint without a measure is never the best."""
    best = checkpoint_folder
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no file checkpoints/best\. .*validation\.every.*updates: 1\."):
        best(tmp_path, best=True)
    save(tmp_path, 2, measure=0.5)
    save(tmp_path, 3, measure=0.3, healthy=False)
    save(tmp_path, 4, measure=0.7)
    save(tmp_path, 5)
    assert best(tmp_path, best=True).name == "step-000002"
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 5]
    save(tmp_path, 6, measure=0.4)
    assert best(tmp_path, best=True).name == "step-000006"
    # The clips of validation have changed, so earlier measures cannot be compared.
    save(tmp_path, 7, measure=0.9, since=7)
    assert best(tmp_path, best=True).name == "step-000007"
    save(tmp_path, 8, since=8)
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_a_stored_measure_changes_only_what_the_validation_found(tmp_path: Path) -> None:
    save(tmp_path, 1, notes={"energies": 1, "other": 2})
    before = read_manifest(checkpoint_folder(tmp_path))
    changes = {"keep": 1, "since": 0, "healthy": False, "notes": {"energies": 3}}
    checkpoints.record_measure(tmp_path, 1, 0.25, **changes)  # type: ignore[arg-type]
    after = read_manifest(checkpoint_folder(tmp_path))
    assert (after.measure, after.healthy, after.notes) == (0.25, False, {"energies": 3, "other": 2})
    assert (after.update, after.files, after.counters) == (before.update, before.files, before.counters)
    assert checkpoints.verified(tmp_path).name == "step-000001"


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def put_strangers(root: Path) -> set[str]:
    """Put files beside the checkpoint of update 1 that people and their programs leave there; return their names."""
    for name in ("step-000001-good", "step-000001 copy", "step-1", "step-000009", ".tmp-"):
        shutil.copytree(root / "step-000001", root / name)
    for name in ("step-000002", "step-000003"):
        (root / name).mkdir()
    (root / "step-000002" / "mine.txt").write_text("kept")
    for name in ("step-notes.txt", "step-000004", "._step-000001", ".DS_Store", "step-²"):
        (root / name).write_text("kept")
    (root / "step-000005").symlink_to(root / "nowhere")
    return names(root.parent)


def test_strangers_between_the_checkpoints_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    root = tmp_path / "checkpoints"
    strangers = put_strangers(root) - {"step-000001", "latest", "best", ".tmp-"}
    for update in range(2, 8):
        save(tmp_path, update)
    assert checkpoint_folder(tmp_path) == root / "step-000007"
    assert names(tmp_path) - strangers == {
        "step-000007",
        "latest",
        *(f"step-00000{update}-set-aside" for update in (2, 3, 4, 5)),
    }
    assert (root / "step-000002-set-aside" / "mine.txt").read_text() == "kept"
    assert read_manifest(root / "step-000009").update == 1
    assert healthy_updates(tmp_path) == [7]
    go_back(tmp_path, Rollback(7, 1))
    assert (root / "step-000009").is_dir()


def test_a_checkpoint_on_another_disk_is_removed_without_its_target(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-000001"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    save(tmp_path, 2)
    assert checkpoint_updates(tmp_path / "checkpoints") == [2]
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "weights").is_file()


def test_a_checkpoint_that_another_program_holds_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network folder keeps files that are open elsewhere, so a folder cannot be removed at once."""

    def busy(path: Path, **_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for update in (1, 2, 3):
            save(tmp_path, update)
    assert checkpoint_updates(tmp_path / "checkpoints") == [3]
    assert "resource busy" in caplog.text
    save(tmp_path, 4)
    assert not any(name.startswith(".tmp-") for name in names(tmp_path))


@pytest.mark.timeout(300)
def test_a_copied_checkpoint_disturbs_no_command(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """Of a real run: it resumes, also with a stale copy of a file in a checkpoint, and its report is written."""
    run = tmp_path / "run"
    config = tiny_config(run, updates=1, method={"fake_updates": 1}, checkpoint={"every": 1, "keep": 1})
    config["model"] |= {"mode": "lora"}
    assert live(config).codes == [0]
    root = run / "checkpoints"
    shutil.copytree(root / "step-000001", root / "step-000001-good")
    state = next((root / "step-000001" / "state" / "generator").iterdir())
    shutil.copy(state, state.with_name(f"{state.stem} (1).safetensors"))
    (run / "validation").mkdir()
    (run / "validation" / "step-000001 copy.png").write_bytes(b"")
    assert "Available checkpoints: 1." in write_report(run).read_text()
    done = live(config | {"updates": 2}, "--resume")
    assert done.codes == [0], done.said
    assert {"step-000002", "step-000001-good"} <= names(run)
    assert checkpoint_updates(root) == [2]
    # The name of a copy may be written into `latest`.
    (root / "latest").write_text("step-000001-good\n")
    assert live(config | {"updates": 2}, "--resume").codes == [0]
    assert [event["step"] for event in json_lines(run / "events.jsonl") if event["event"] == "resumed"] == [1, 1]


class Disk:
    """A disk that has room for a number of checkpoints."""

    def __init__(self, run: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.room = run, room
        written = train.run.checkpoints.write_text
        monkeypatch.setattr(train.run.checkpoints, "write_text", lambda *given: (self.check(given[0]), written(*given)))

    def check(self, path: Path) -> None:
        """Fail as a full disk does, when the manifest of one more checkpoint is written."""
        one_more = path.parent.name.startswith(".tmp-")
        if one_more and len(list((self.run / "checkpoints").glob("step-*"))) >= self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_pruned_to_the_best_and_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path, 4, monkeypatch)
    for update, measure in ((1, 4.0), (2, 1.0), (3, 3.0), (4, 2.0)):
        save(tmp_path, update, keep=9, measure=measure)
    save(tmp_path, 5, keep=9, measure=5.0)
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 3, 4, 5]
    assert "updates 1 " in caplog.text
    disk.room = 3
    save(tmp_path, 6, keep=9, measure=5.0)
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 5, 6]
    disk.room = 1
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint of update 6 is intact"):
        save(tmp_path, 7, keep=9, measure=5.0)
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 6]
    assert checkpoint_folder(tmp_path).name == "step-000006"
    assert checkpoint_folder(tmp_path, best=True).name == "step-000002"
    assert not any(name.startswith(".tmp-") for name in names(tmp_path))


def test_a_full_disk_never_costs_the_newest_healthy_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard rolls back to it."""
    Disk(tmp_path, 4, monkeypatch)
    for update, healthy in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, update, keep=9, healthy=healthy)
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 3, 4, 5]


def test_a_disk_without_room_for_a_pointer_is_pruned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is complete, and only its name cannot be written into `latest`."""
    for update in (1, 2):
        save(tmp_path, update, keep=9)
    written = checkpoint_folders.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "latest" and checkpoint_updates(tmp_path / "checkpoints") == [1, 2, 3]:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        written(path, text)

    monkeypatch.setattr(checkpoint_folders, "write_text", full)
    save(tmp_path, 3, keep=9)
    assert checkpoint_folder(tmp_path).name == "step-000003"
    assert checkpoint_updates(tmp_path / "checkpoints") == [2, 3]


def test_space_of_old_checkpoints_counts_before_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update, keep=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(5000, 4900, 100))
    check_room(tmp_path, 2100, keep=9)
    with pytest.raises(ValueError, match="GB free"):
        check_room(tmp_path, 2200, keep=9)


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "(os error 122)"])
def test_a_full_disk_is_recognised_in_all_its_forms(text: str) -> None:
    wrapped = CheckpointError("it cannot be written")
    wrapped.__cause__ = RuntimeError(text)
    assert is_full(wrapped)
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert not is_full(OSError(errno.EROFS, "x"))
    assert not is_full(RuntimeError("(os error 27)"))

"""The folder of a run: one training at a time, the same folder for all processes, and writable before anything else."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train.run.trainer
from magicdistill_core.errors import MagicDistillError, OutputError
from tests.makers import json_lines
from train.config.reading import parse_config
from train.folder_lock import LOCK_NAME, folder_lock
from train.run_folder import checkpoint_updates
from train.watch.report import write_report

# Holds the lock of a folder until its input ends.
_HOLDER = """
import sys
from pathlib import Path
from train.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), "magicdistill train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def small(tiny_config: Callable[..., dict], run: Path, **sections: object) -> dict:
    config = tiny_config(run, method={"fake_updates": 1}, checkpoint={"every": 1, "keep": 2}) | sections
    config["model"] |= {"mode": "lora"}
    return config


@pytest.mark.timeout(300)
def test_a_second_training_is_refused_and_names_the_first(
    tmp_path: Path, tiny_config: Callable, live: Callable, holder: subprocess.Popen
) -> None:
    """Also on two processes, of which only one takes the lock. After a `kill -9` of the first, the second may train."""
    run = tmp_path / "run"
    for processes in (1, 2):
        life = live(small(tiny_config, run), processes=processes)
        assert life.codes == [2] * processes, life.said
        assert all(f"process {holder.pid} on this machine" in said for said in life.output)
        assert "Traceback" not in life.said
    assert not (run / "checkpoints").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    life = live(small(tiny_config, run))
    assert life.codes == [0], life.said
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


@pytest.mark.timeout(300)
def test_a_second_resume_is_refused_while_reports_are_written(
    tmp_path: Path, tiny_config: Callable, live: Callable, magicdistill: Callable
) -> None:
    run = tmp_path / "run"
    assert live(small(tiny_config, run, updates=1)).codes == [0]
    with folder_lock(run, "magicdistill train"):
        life = live(small(tiny_config, run, updates=2), "--resume")
        assert life.codes == [2]
        assert "magicdistill train, process" in life.said
        assert write_report(run).is_file()
        assert magicdistill("export", run, "--format", "lora", "--out", tmp_path / "lora.safetensors")[0] == 0
    assert checkpoint_updates(run / "checkpoints") == [1]
    happened = [event["event"] for event in json_lines(run / "events.jsonl")]
    assert [event for event in happened if event != "warning"] == ["started", "saved", "finished"]
    assert live(small(tiny_config, run, updates=2), "--resume").codes == [0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("there", [False, True], ids=["missing", "another"])
def test_a_folder_that_machines_do_not_share_is_refused(
    there: bool, tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """The two processes have different working folders, as on two machines, and the run has a relative path."""
    folders = [tmp_path / "machine_0", tmp_path / "machine_1"]
    for folder in folders:
        folder.mkdir()
    if there:
        (folders[1] / "runs" / "mine").mkdir(parents=True)
    life = live(small(tiny_config, Path("runs/mine")), processes=2, folders=[str(folder) for folder in folders])
    assert life.codes == [2, 2], life.said
    for folder in folders:
        assert all(str(folder / "runs" / "mine") in said for said in life.output)
    assert "run=/" in life.said
    assert not (folders[0] / "runs").exists()
    assert (folders[1] / "runs").exists() == there


@pytest.mark.parametrize("place", ["file/run", "run"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(
    place: str, tmp_path: Path, tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place.partition("/")[0]).write_text("not a folder")
    monkeypatch.setattr(train.run.trainer, "check_inputs", lambda *_, **__: pytest.fail("inputs were read"))
    with pytest.raises(OutputError, match=f"{tmp_path / place}"):
        train.run.trainer.train(parse_config(tiny_config(tmp_path / place), "test"))


def test_a_refused_start_leaves_no_folder(tmp_path: Path, tiny_config: Callable) -> None:
    """But it keeps a folder that was there, with its files."""
    tree = tiny_config(tmp_path / "runs" / "mine", data={"dataset": str(tmp_path / "none")})
    with pytest.raises(MagicDistillError, match="none"):
        train.run.trainer.train(parse_config(tree, "test"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    with pytest.raises(MagicDistillError, match="none"):
        train.run.trainer.train(parse_config(tree, "test"))
    assert list((tmp_path / "runs").iterdir()) == []
    assert not (tmp_path / "runs" / LOCK_NAME).exists()

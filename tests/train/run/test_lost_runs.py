"""Killed, stopped and collapsed runs continue from their last good checkpoint with identical results."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.makers import json_lines, metrics_of
from train.run.checkpoints import verified

UPDATES = 5


def small(tiny_config: Callable[..., dict], run: Path, **sections: object) -> dict:
    """A run that saves after every round."""
    checkpoint = {"every": 1, "keep": 2}
    config = tiny_config(run, updates=UPDATES, checkpoint=checkpoint, method={"fake_updates": 1}) | sections
    config["model"] |= {"mode": "lora"}
    return config


def contents(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """The metrics of every round, and all tensors of the last checkpoint as bytes."""
    found = {}
    folder = verified(run)
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                found[f"{file.relative_to(folder)}/{name}"] = opened.get_tensor(name).numpy().tobytes()
    return metrics_of(run), found


@pytest.fixture(scope="module")
def whole_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(whole_folders: Path, tiny_config: Callable, live: Callable) -> Callable[[int], tuple]:
    """The contents of an uninterrupted run on a number of processes."""

    def contents_of(processes: int) -> tuple[list[dict], dict[str, bytes]]:
        run = whole_folders / str(processes)
        if not run.exists():
            done = live(small(tiny_config, run), processes=processes)
            assert done.codes == [0] * processes, done.said
        return contents(run)

    return contents_of


@pytest.mark.timeout(900)
def test_kill_9_at_any_moment(tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable) -> None:
    """The run is killed before random file operations in its checkpoints and at random times, until it finishes."""
    choose = random.Random(0)
    run = tmp_path / "run"
    config = small(tiny_config, run)
    checkpoints = run / "checkpoints"
    killed = saving = 0
    for number in range(14):
        if number % 3 == 2:
            fault: dict[str, object] = {"signal_after": choose.uniform(0, 0.4)}
        else:
            fault = {"die_at": choose.randint(1, 70), "watched": str(checkpoints)}
        life = live(config, *(["--resume"] if run.exists() else []), **fault)
        assert life.codes in ([0], [-signal.SIGKILL]), life.said
        killed += life.codes == [-signal.SIGKILL]
        saving += any(checkpoints.glob(".tmp-*"))
        if life.codes == [0]:
            break
    else:
        assert live(config, "--resume").codes == [0]
    assert killed >= 4
    assert saving >= 2
    assert contents(run) == whole(1)
    assert not list(checkpoints.glob(".tmp-*"))


@pytest.mark.timeout(600)
def test_one_of_two_processes_is_killed(tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable) -> None:
    """Killed in a round and in a save: the other process ends with an explanation, and the run can be resumed."""
    run = tmp_path / "run"
    config = small(tiny_config, run)
    for victim, fault in (
        (1, {"signal_after": 0.1}),
        (0, {"die_at": 45, "watched": str(run / "checkpoints")}),
    ):
        life = live(config, *(["--resume"] if run.exists() else []), processes=2, victim=victim, **fault)
        assert life.codes[victim] == -signal.SIGKILL, life.said
        assert life.codes[1 - victim] == 2, life.said
        assert "Another process" in life.output[1 - victim]
        assert "--resume" in life.output[1 - victim]
    assert live(config, "--resume", processes=2).codes == [0, 0]
    assert contents(run) == whole(2)


@pytest.mark.timeout(150)
def test_a_process_that_does_not_answer_ends_the_run(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    config = small(tiny_config, tmp_path / "run", timeout=0.3, updates=100)
    life = live(config, processes=2, victim=1, signal_after=0.1, signal=signal.SIGSTOP)
    assert life.codes == [2, -signal.SIGKILL]
    assert "0.3 minutes" in life.output[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_saves_and_stops(
    number: signal.Signals, processes: int, tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable
) -> None:
    """The signal goes to one process of two: both stop after the same round, and the output names `--resume`."""
    run = tmp_path / "run"
    config = small(tiny_config, run, checkpoint={"every": 100, "keep": 2})
    life = live(config, processes=processes, victim=processes - 1, signal_after=0.0, signal=number)
    assert life.codes == [0] * processes, life.said
    assert f"Stopped by {number.name} at update" in life.output[0]
    assert "--resume" in life.output[0]
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert step < UPDATES
    assert verified(run).name == f"step-{step:06d}"
    assert live(config, "--resume", processes=processes).codes == [0] * processes
    assert contents(run) == whole(processes)


@pytest.mark.timeout(600)
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable
) -> None:
    """One process of two cannot write its partitions: both report it, and the incomplete checkpoint is removed."""
    run = tmp_path / "run"
    config = small(tiny_config, run)
    assert live(config | {"updates": 2}, processes=2).codes == [0, 0]
    life = live(config, "--resume", processes=2, victim=1, file_limit=30_000)
    assert life.codes == [2, 2], life.said
    assert f"written to {run / 'checkpoints'}" in life.said
    assert "checkpoint of update 2 " in life.said
    assert verified(run).name == "step-000002"
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert live(config, "--resume", processes=2).codes == [0, 0]
    assert contents(run) == whole(2)


@pytest.mark.timeout(600)
def test_a_disk_that_is_too_small_is_reported_at_once(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """Both processes report it before anything is trained or written."""
    run = tmp_path / "run"
    life = live(small(tiny_config, run), processes=2, free_space=10_000)
    assert life.codes == [2, 2], life.said
    assert all("0.0 GB free" in said and "run=FOLDER" in said for said in life.output)
    assert not run.exists()


@pytest.mark.timeout(600)
def test_weights_that_lead_to_nan_are_not_trusted(
    tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable
) -> None:
    """The weights explode in update 3, but only update 4 shows NaN: the checkpoint of update 3 is not trusted."""
    run = tmp_path / "run"
    config = small(tiny_config, run, checkpoint={"every": 1, "keep": 3})
    assert live(config | {"updates": 2}).codes == [0]
    wild = config | {"generator_optimizer": {"lr": 1e38}}
    life = live(wild, "--resume", report=True)
    assert life.codes == [2]
    assert "stopped at update 4" in life.said
    assert "is nan" in life.said
    assert "checkpoint is of update 2" in life.said
    assert (run / "report" / "report.md").exists()
    assert live(config | {"checkpoint": {"every": 1, "keep": 2}}, "--resume").codes == [0]
    assert contents(run) == whole(1)


@pytest.mark.timeout(600)
def test_the_guard_ends_a_run_or_warns(tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable) -> None:
    """The limit is so low that the second round exceeds it. A guard that only warns does not change the weights."""
    run = tmp_path / "run"
    guard = {"warmup": 1, "window": 1, "patience": 2, "relative_distance_ceiling": 1e-6}
    config = small(tiny_config, run, guard=guard)
    life = live(config, report=True)
    assert life.codes == [2]
    assert "at update 3: " in life.said
    assert "guard.relative_distance_ceiling" in life.said
    assert verified(run).name == "step-000001"
    assert "guard.relative_distance_ceiling" in (run / "report" / "report.md").read_text()
    life = live(config | {"guard": guard | {"action": "warn"}}, "--resume")
    assert life.codes == [0]
    assert life.said.count("drift apart") == 1
    assert contents(run)[1] == whole(1)[1]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["guard/relative_distance"] > 0


@pytest.mark.timeout(600)
def test_a_run_rolls_back_by_itself(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """With `rollback` the run restarts from the last good checkpoint at a lower rate, which is still too high here."""
    run = tmp_path / "run"
    config = small(tiny_config, run, checkpoint={"every": 1, "keep": 3})
    assert live(config | {"updates": 2}).codes == [0]
    wild = config | {"generator_optimizer": {"lr": 1e38}, "guard": {"action": "rollback", "rollbacks": 1}}
    life = live(wild, "--resume")
    assert life.codes == [2]
    events = json_lines(run / "events.jsonl")
    went_back = [event for event in events if event["event"] == "went back"]
    assert [(event["step"], event["failed"]) for event in went_back] == [(2, 4)]
    assert events[-1]["event"] == "ended by the guard"
    assert json.loads((run / "checkpoints" / "rollback.json").read_text()) == {"step": 2, "attempt": 1}
    assert [row["step"] for row in json_lines(run / "metrics-abandoned.jsonl")] == [3, 4]
    mended = wild | {"generator_optimizer": config["generator_optimizer"]}
    assert live(mended, "--resume").codes == [0]
    shutil.rmtree(run / "tensorboard")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == UPDATES


@pytest.mark.timeout(600)
def test_a_killed_run_still_counts_its_rollback(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """Killed between a rollback and the next save: the resumed run still counts the rollback (`guard.rollbacks`)."""
    run = tmp_path / "run"
    config = small(tiny_config, run, checkpoint={"every": 1, "keep": 3})
    assert live(config | {"updates": 2}).codes == [0]
    (run / "checkpoints" / "rollback.json").write_text(json.dumps({"step": 2, "attempt": 1}))
    wild = config | {"generator_optimizer": {"lr": 1e38}, "guard": {"action": "rollback", "rollbacks": 1}}
    life = live(wild, "--resume")
    assert life.codes == [2]
    assert "stopped at update 4" in life.said
    assert "went back" not in [event["event"] for event in json_lines(run / "events.jsonl")]


@pytest.mark.timeout(600)
def test_an_unfinished_rollback_is_finished_on_resume(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """Killed after the record of a rollback was written: the resumed run rolls back and lowers the learning rate."""
    run = tmp_path / "run"
    config = small(tiny_config, run, checkpoint={"every": 1, "keep": 3})
    assert live(config | {"updates": 2}).codes == [0]
    (run / "checkpoints" / "rollback.json").write_text(json.dumps({"step": 1, "attempt": 1}))
    life = live(config | {"updates": 2}, "--resume")
    assert life.codes == [0], life.said
    assert "multiplied by 0.5" in life.said
    events = json_lines(run / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resumed"] == [1]
    assert json.loads((verified(run) / "manifest.json").read_text())["notes"]["attempt"] == 1
    # The rollback happens only once: the next resume starts from the checkpoint that this one saved.
    assert live(config | {"updates": 3}, "--resume").codes == [0]
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-3])
    assert (last["event"], last["step"]) == ("resumed", 2)


@pytest.mark.timeout(600)
def test_a_time_limit_saves_and_changes_nothing(
    tmp_path: Path, tiny_config: Callable, live: Callable, whole: Callable
) -> None:
    """Saves happen by time, long before `every` updates. Unwritable samples only cause a warning after the save."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "validation").write_text("in the way of the folder of the samples")
    checkpoint = {"every": 100, "keep": 2, "minutes": 1e-6}
    life = live(small(tiny_config, run, checkpoint=checkpoint, validation={"every": 3, "samples": 1}), processes=2)
    assert life.codes == [0, 0], life.said
    events = json_lines(run / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "saved"] == list(range(1, UPDATES + 1))
    shown = [(event["event"], event["step"]) for event in events if event["step"] == 3]
    assert shown == [("saved", 3), ("warning", 3)]
    assert "Update 3: " in life.output[0]
    assert "FileExistsError" in life.output[0]
    assert contents(run) == whole(2)

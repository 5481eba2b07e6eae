"""The log of a run: each curve has one value for each round that counts."""

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.watch.log
from tests.makers import json_lines
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.watch.log import RunLog, drop_after, read_lines

HEADLINE = ("fake/loss",)


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    # With these variables accelerate would assume that a launcher started this process.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return parse_config(tiny_config(tmp_path, logging={"wandb": None}), "test")


def open_log(config: TrainConfig, done: int) -> RunLog:
    return RunLog(config.run, "w2s", config.updates, done, HEADLINE)


def test_lost_rounds_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_after(tmp_path, 3)
    assert not path.exists()
    path.write_text("".join(json.dumps({"step": step, "a": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "a')
    drop_after(tmp_path, 4, "gone.jsonl")
    assert [row["step"] for row in json_lines(path)] == [1, 2, 3, 4]
    drop_after(tmp_path, 2, "gone.jsonl")
    assert [row["step"] for row in json_lines(path)] == [1, 2]
    assert [row["step"] for row in json_lines(tmp_path / "gone.jsonl")] == [5, 3, 4]


def test_a_round_is_logged_once_after_resuming_and_going_back(config: TrainConfig) -> None:
    with open_log(config, 0) as log:
        for step in (1, 2, 3, 4):
            log.log(step, {"fake/loss": 1.0 * step}, seconds=0.5)
    with open_log(config, 2) as log:
        for step in (3, 4, 5):
            log.log(step, {"fake/loss": 10.0 * step}, seconds=0.5)
        log.go_back(3)
        log.log(4, {"fake/loss": 100.0}, seconds=0.5)
        log.event("finished", 4)
    assert [(row["step"], row["fake/loss"]) for row in json_lines(config.run / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 100.0),
    ]
    assert [row["fake/loss"] for row in json_lines(config.run / "metrics-abandoned.jsonl")] == [40.0, 50.0]
    assert [(event["event"], event["step"]) for event in json_lines(config.run / "events.jsonl")] == [("finished", 4)]
    board = EventAccumulator(str(config.run / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("fake/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 100.0),
    ]
    assert len(board.Scalars("seconds")) == 4


def test_a_metric_that_is_not_logged_is_left_out_of_the_headline(config: TrainConfig) -> None:
    """Without ZeRO in fp32, DeepSpeed reports no gradient norms."""
    with RunLog(config.run, "sft", 2, 0, ("generator/loss", "generator/gradient_norm")) as log:
        log.log(1, {"generator/loss": 0.5}, seconds=0.5)
    assert [row["generator/loss"] for row in read_lines(config.run / "metrics.jsonl")] == [0.5]


class FullOnce:
    """Something that is written, and for which the disk is full at its second use."""

    def __init__(self, write: Callable[..., None]) -> None:
        self.write, self.uses = write, 0

    def __call__(self, *given: object, **named: object) -> None:
        self.uses += 1
        if self.uses == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.write(*given, **named)


@pytest.mark.parametrize("place", ["metrics", "tensorboard", "events"])
@pytest.mark.parametrize("room", [True, False])
def test_a_full_disk_costs_no_round(
    place: str, room: bool, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If room can be made, every round and event is there once; else the error ends the run."""
    asked: list[OSError] = []

    def make_room(error: OSError) -> bool:
        asked.append(error)
        return room

    if place == "tensorboard":
        full = FullOnce(TensorBoardTracker.log)
        monkeypatch.setattr(TensorBoardTracker, "log", lambda *given, **named: full(*given, **named))
    if place == "events":
        monkeypatch.setattr(train.watch.log, "add_event", FullOnce(train.watch.log.add_event))
    log = RunLog(config.run, "w2s", 3, 0, HEADLINE, make_room=make_room)
    if place == "metrics":
        real = log._lines
        log._lines = SimpleNamespace(write=real.write, flush=FullOnce(real.flush), close=real.close)  # type: ignore[assignment]
    with nullcontext() if room else pytest.raises(OSError, match="No space"), log:
        for step in (1, 2, 3):
            log.log(step, {"fake/loss": 1.0 * step}, seconds=0.5)
            log.event("saved", step)
    assert len(asked) == 1
    if room:
        assert [row["step"] for row in json_lines(config.run / "metrics.jsonl")] == [1, 2, 3]
        assert [event["step"] for event in json_lines(config.run / "events.jsonl")] == [1, 2, 3]
        assert steps_shown(config.run / "tensorboard") == [1, 2, 3]


def steps_shown(folder: Path) -> list[int]:
    """The steps of `fake/loss` in all event files.

    Each file is read alone, because files of the same second are ordered by a counter of the process, as text: in a
    process of many tests, 10 may come before 9.
    """
    boards = [EventAccumulator(str(file)).Reload() for file in folder.rglob("events.out.*")]
    return sorted(event.step for board in boards if board.Tags()["scalars"] for event in board.Scalars("fake/loss"))


def test_damaged_lines_are_skipped_and_harm_no_later_line(config: TrainConfig) -> None:
    """A killed process or a full disk leaves half a line, zeros, or bytes that are no text."""
    events = config.run / "events.jsonl"
    events.write_bytes(
        b'{"event": "started", "step": 0, "time": 1}\n17\n"x"\n{"event": "odd"}\n\xff\0\0\n{"event": "sav'
    )
    with open_log(config, 0) as log:
        log.event("resumed", 3)
        log.event("finished", 4)
    assert [e["event"] for e in read_lines(events, "event", "step", "time")] == ["started", "resumed", "finished"]
    metrics = config.run / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 1, "fake/loss": 1.0}\n\xff\0\n[]\n{"step": 2, "fake/lo')
    with open_log(config, 1) as log:
        log.log(2, {"fake/loss": 2.0}, seconds=0.5)
    assert [row["step"] for row in read_lines(metrics)] == [1, 2]

"""The log of a run: each curve has one value for each round that counts."""

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from magicdistill_core.errors import ConfigError
from tests.makers import json_lines
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.watch.log import RunLog, check_trackers, drop_after, read_lines, wandb_tracker

HEADLINE = ("fake/loss",)


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    # With these variables accelerate would assume that a launcher started this process.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return parse_config(tiny_config(tmp_path, logging={"wandb": None}), "test")


def open_log(config: TrainConfig, done: int) -> RunLog:
    return RunLog(config.run, "w2s", config.updates, done, HEADLINE, wandb_tracker(config))


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


class Wandb(ModuleType):
    """A stand-in for the package `wandb` that records all calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.settings: list[dict] = []
        self.logged: list[dict] = []
        self.metrics: list[tuple] = []
        self.finished = 0

    def init(self, **settings: object) -> "Wandb":
        self.settings.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict, step: int | None = None) -> None:
        assert step is None
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_every_round_of_one_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = config.model_copy(update={"logging": config.logging.model_copy(update={"wandb": "portraits"})})
    check_trackers(config)
    for step in (1, 2):
        with open_log(config, step - 1) as log:
            log.log(step, {"fake/loss": 1.0}, seconds=0.5)
    assert [settings["project"] for settings in wandb.settings] == ["portraits"] * 2
    assert wandb.settings[0]["id"] == wandb.settings[1]["id"]
    assert wandb.settings[0]["config"]["updates"] == config.updates
    assert [row["update"] for row in wandb.logged] == [1, 2]
    assert wandb.logged[0] == {"fake/loss": 1.0, "seconds": 0.5, "update": 1}
    assert wandb.metrics == [("*", "update")] * 2
    assert wandb.finished == 2


def test_a_missing_wandb_is_reported_first(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(config)
    monkeypatch.setattr("train.watch.log.find_spec", lambda name: None)
    config = config.model_copy(update={"logging": config.logging.model_copy(update={"wandb": "portraits"})})
    with pytest.raises(ConfigError, match=r"logging\.wandb is 'portraits'.*pip install wandb"):
        check_trackers(config)


def test_a_metric_that_is_not_logged_is_left_out_of_the_headline(config: TrainConfig) -> None:
    """Without ZeRO in fp32, DeepSpeed reports no gradient norms."""
    with RunLog(config.run, "sft", 2, 0, ("generator/loss", "generator/gradient_norm")) as log:
        log.log(1, {"generator/loss": 0.5}, seconds=0.5)
    assert [row["generator/loss"] for row in read_lines(config.run / "metrics.jsonl")] == [0.5]


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

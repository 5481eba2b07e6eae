"""Weights & Biases: the login is checked first, and its curves have one value for each round that counts."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import train.run.trainer
from magicdistill_core.errors import ConfigError
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.watch.log import RunLog
from train.watch.weights_and_biases import check_wandb, wandb_log


class Wandb(ModuleType):
    """A stand-in for the package `wandb`: the rows of each W&B run by its id, and the answer to a login."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.settings: list[dict] = []
        self.rows: dict[str, list[dict]] = {}
        self.metrics: list[tuple] = []
        self.finished = 0
        self.answer: bool | Exception = True
        self.logins: list[dict] = []

    def login(self, **options: object) -> bool:
        self.logins.append(options)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def init(self, **settings: object) -> "Wandb":
        self.settings.append(settings)
        self.rows.setdefault(str(settings["id"]), [])
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict, step: int | None = None) -> None:
        assert step is None
        self.rows[self.settings[-1]["id"]].append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    # With these variables accelerate would assume that a launcher started this process.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., dict]) -> TrainConfig:
    return parse_config(tiny_config(tmp_path / "mine", logging={"wandb": "portraits"}), "test")


def open_log(config: TrainConfig, done: int) -> RunLog:
    config.run.mkdir(exist_ok=True)
    return RunLog(config.run, "w2s", config.updates, done, (), wandb_log(config))


def updates(rows: list[dict]) -> list[tuple[int, float]]:
    return [(row["update"], row["loss"]) for row in rows]


def test_wandb_gets_every_round_of_one_run(config: TrainConfig, wandb: Wandb) -> None:
    for step in (1, 2):
        with open_log(config, step - 1) as log:
            log.log(step, {"loss": 1.0}, seconds=0.5)
    assert [settings["project"] for settings in wandb.settings] == ["portraits"] * 2
    assert wandb.settings[0]["config"]["updates"] == config.updates
    (rows,) = wandb.rows.values()
    assert rows == [{"loss": 1.0, "seconds": 0.5, "update": update} for update in (1, 2)]
    assert wandb.metrics == [("*", "update")] * 2
    assert wandb.finished == 2


def test_rounds_that_a_rollback_dropped_are_in_no_curve(config: TrainConfig, wandb: Wandb) -> None:
    """Nor are those that a killed run made after its last checkpoint."""
    with open_log(config, 0) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step)}, seconds=0.5)
        log.go_back(1)
        log.log(2, {"loss": 20.0}, seconds=0.5)
        log.log(3, {"loss": 30.0}, seconds=0.5)
    first, second = wandb.rows.values()
    assert updates(first) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert updates(second) == [(1, 1.0), (2, 20.0), (3, 30.0)]
    with open_log(config, 2) as log:
        log.log(3, {"loss": 300.0}, seconds=0.5)
    third = list(wandb.rows.values())[-1]
    assert updates(third) == [(1, 1.0), (2, 20.0), (3, 300.0)]
    assert len({settings["id"] for settings in wandb.settings}) == 3
    assert {settings["group"] for settings in wandb.settings} == {"mine"}
    assert wandb.settings[-1]["name"] == "mine from update 2"
    assert wandb.finished == 3


@pytest.mark.parametrize("answer", [False, RuntimeError("api_key not configured (no-tty)")])
def test_a_missing_login_is_reported_before_anything_is_loaded(
    answer: bool | Exception, config: TrainConfig, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.answer = answer
    monkeypatch.setattr(train.run.trainer, "check_inputs", lambda *_, **__: pytest.fail("inputs were read"))
    with pytest.raises(ConfigError, match=r"wandb login.*WANDB_MODE=offline"):
        train.run.trainer.train(config)
    assert not config.run.exists()
    assert wandb.logins[0]["verify"]


def test_no_login_is_needed_offline(config: TrainConfig, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.answer = False
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb(config)
    assert not wandb.logins


def test_a_missing_wandb_is_reported_first(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.watch.weights_and_biases.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logging\.wandb is 'portraits'.*pip install wandb"):
        check_wandb(config)
    check_wandb(config.model_copy(update={"logging": config.logging.model_copy(update={"wandb": None})}))

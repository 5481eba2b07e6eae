"""A run that ends by an error records it, and its report says so."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magicdistill_core.errors import MagicDistillError
from tests.makers import json_lines
from train.config.reading import parse_config
from train.run.failures import recorded_failure
from train.run.trainer import Trainer
from train.run.trainer import train as run_training


def small(tiny_config: Callable[..., dict], run: Path, **sections: object) -> dict:
    config = tiny_config(run, method={"fake_updates": 1}, checkpoint={"every": 1, "keep": 2}) | sections
    config["model"] |= {"mode": "lora"}
    return config


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError("a shape is wrong"), RuntimeError, "RuntimeError: a shape is wrong"),
        (KeyboardInterrupt(), KeyboardInterrupt, "KeyboardInterrupt"),
        (OSError(errno.EIO, "Input/output error", "x"), MagicDistillError, "Input/output error"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), MagicDistillError, "data.micro_batch"),
    ],
)
def test_a_crash_is_an_event_and_heads_the_report(
    error: BaseException,
    kind: type[BaseException],
    text: str,
    tmp_path: Path,
    tiny_config: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = Trainer._round

    def failing(trainer: Trainer) -> dict[str, float]:
        if trainer.state.updates == 1:
            raise error
        return rounds(trainer)

    monkeypatch.setattr(Trainer, "_round", failing)
    run = tmp_path / "run"
    with pytest.raises(kind):
        run_training(parse_config(small(tiny_config, run), "test"))
    last = json_lines(run / "events.jsonl")[-1]
    assert (last["event"], last["step"]) == ("failed", 1)
    assert text in last["error"]
    report = (run / "report" / "report.md").read_text()
    assert "at update 1 of 2: " in report[:200]
    assert report.count(text) == 2


def test_a_crash_while_a_run_is_loaded_is_an_event_too(tmp_path: Path, tiny_config: Callable) -> None:
    config = parse_config(tiny_config(tmp_path), "test")
    with pytest.raises(ZeroDivisionError), recorded_failure(config):
        raise ZeroDivisionError
    assert not (tmp_path / "events.jsonl").exists()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MagicDistillError), recorded_failure(config):
        raise MagicDistillError("no such dataset")
    assert not (tmp_path / "events.jsonl").exists()
    with pytest.raises(ZeroDivisionError), recorded_failure(config):
        raise ZeroDivisionError
    assert [event["event"] for event in json_lines(tmp_path / "events.jsonl")] == ["failed"]


def test_under_torchrun_only_torchrun_prints_a_traceback(
    magicdistill: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher_file: Path
) -> None:
    import train.tools.inspect_file

    def crash(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(train.tools.inspect_file, "inspect_file", crash)
    with pytest.raises(RuntimeError, match="boom"):
        magicdistill("inspect", teacher_file)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    status, _, err = magicdistill("inspect", teacher_file)
    assert status == 1
    assert "RuntimeError: boom" in err
    assert "Traceback" not in err
    assert "Traceback" in (tmp_path / "error.json").read_text()

"""The fake warm-up: rounds of the fake branch alone before the first generator update, and exact resumes in it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.safetensors_file import read_tensors
from tests.makers import json_lines, metrics_of
from train.config.reading import parse_config
from train.run.checkpoints import verified

WARMUP, UPDATES, FAKE_UPDATES = 6, 2, 2


def configured(tiny_config: Callable[..., dict], run: Path, warmup: int = WARMUP, **sections: object) -> dict:
    method = {"fake_updates": FAKE_UPDATES, "fake_warmup": warmup}
    usual = {"checkpoint": {"every": 1, "keep": 9}, "logging": {"signal_every": 1}}
    return tiny_config(run, updates=UPDATES, method=method) | usual | sections


def state(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """The metrics of all rounds, and all tensors of the last checkpoint as bytes."""
    folder, found = verified(run), {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in read_tensors(path)[0].items():
            found[f"{path.relative_to(folder)}/{name}"] = tensor.numpy().tobytes()
    return metrics_of(run), found


@pytest.fixture
def whole(tmp_path: Path, tiny_config: Callable, live: Callable) -> Path:
    """A run that was never stopped."""
    run = tmp_path / "whole"
    life = live(configured(tiny_config, run))
    assert life.codes == [0], life.said
    return run


@pytest.mark.timeout(600)
def test_only_the_branch_learns_and_updates_are_those_of_the_generator(
    whole: Path, tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    rows = metrics_of(whole)
    assert [row["step"] for row in rows] == list(range(1 - WARMUP, UPDATES + 1))
    assert all("generator/loss" in row for row in rows if row["step"] > 0)
    assert not any("generator/loss" in row for row in rows if row["step"] <= 0)
    # The signal is measured after the last round of the warm-up, where only the branch has made updates.
    assert [row["step"] for row in rows if "signal/fake_below_eps" in row] == list(range(UPDATES + 1))
    assert [row["step"] for row in rows if "signal/generator_below_eps" in row] == list(range(1, UPDATES + 1))
    manifest = json.loads((verified(whole) / "manifest.json").read_text())
    assert manifest["counters"] == {"generator": UPDATES, "fake": FAKE_UPDATES * (WARMUP + UPDATES)}
    # The draws after it are those of a run without it: the first sample of the generator is the same.
    run = tmp_path / "none"
    assert live(configured(tiny_config, run, 0)).codes == [0]
    (first,) = [row for row in rows if row["step"] == 1]
    plain = metrics_of(run)[0]
    assert first["generator/deviation"] == plain["generator/deviation"]
    assert first["generator/real_fake_distance"] > plain["generator/real_fake_distance"]
    # The checkpoint at its end has the teacher's weights.
    teacher = load_checkpoint(Path(configured(tiny_config, run)["model"]["teacher"])).state
    start = load_checkpoint(whole / "checkpoints" / "step-000000" / "generator.safetensors").state
    assert all(torch.equal(start[key], teacher[key]) for key in teacher)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_ends_in_it_resumes_exactly(
    killed: bool, whole: Path, tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """Stopped by SIGTERM, or killed in one of the saves that happen after every round."""
    run = tmp_path / "run"
    config = configured(tiny_config, run, checkpoint={"every": 1, "keep": 9, "minutes": 1e-6 if killed else 0})
    fault: dict[str, object] = {"die_at": 130, "watched": f"{run}/checkpoints"}
    if not killed:
        fault = {"signal_after": 0.0, "signal": signal.SIGTERM}
    life = live(config, **fault, report=True)
    assert life.codes == [-signal.SIGKILL if killed else 0], life.said
    folder = verified(run)
    left = -int(folder.name.removeprefix("step-"))
    assert 0 < left < WARMUP
    if not killed:
        assert "Stopped by SIGTERM at update 0" in life.said
        assert f"at update 0 of {UPDATES}" in (run / "report" / "report.md").read_text()
    longer = configured(tiny_config, run, WARMUP + 1)
    refused = live(longer, "--resume")
    assert refused.codes == [2]
    assert f"fake warm-up of {WARMUP} rounds, with {left} left" in refused.said
    assert f"method.fake_warmup={WARMUP}" in refused.said
    life = live(config, "--resume")
    assert life.codes == [0], life.said
    assert state(run) == state(whole)
    assert [event["step"] for event in json_lines(run / "events.jsonl") if event["event"] == "resumed"] == [-left]


@pytest.mark.timeout(600)
def test_a_run_of_an_earlier_version_resumes_without_it(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    """Its notes know no warm-up and no energy scores, and its configuration has settings that no longer exist."""
    run = tmp_path / "run"
    assert live(configured(tiny_config, run, 0)).codes == [0]
    manifest = verified(run) / "manifest.json"
    tree = json.loads(manifest.read_text())
    del tree["notes"]["warmup"], tree["notes"]["guard"]["energy"]
    manifest.write_text(json.dumps(tree))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["guard"] |= {"gradient_ceiling": 4.0, "distance_ceiling": 5.0}
    settings["method"] |= {"fake_warmup": 3}
    settings["updates"] = UPDATES + 1
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    life = live({"extends": str(run / "config.yaml"), "run": str(run)}, "--resume")
    assert life.codes == [2]
    assert "guard.distance_ceiling: there is no such field" in life.said
    life = live(settings | {"guard": {}}, "--resume")
    assert life.codes == [0], life.said
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3]


@pytest.mark.timeout(600)
def test_nan_in_it_ends_the_run(tmp_path: Path, tiny_config: Callable, live: Callable) -> None:
    run = tmp_path / "run"
    config = configured(tiny_config, run, fake_optimizer={"lr": 1e38}, guard={"action": "off"})
    life = live(config)
    assert life.codes == [2]
    assert "is nan" in life.said
    assert max(row["step"] for row in metrics_of(run)) <= 0


def test_methods_without_a_fake_branch_have_none(tmp_path: Path, tiny_config: Callable) -> None:
    raw = tiny_config(tmp_path / "run", method={"name": "sft"})
    del raw["fake_optimizer"]
    assert parse_config(raw, "test").method.warmup_rounds == 0

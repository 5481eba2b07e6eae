"""Resuming, and refusing to resume from what is damaged or different."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import read_tensors
from magicdistill_core.errors import CheckpointError, ConfigError
from train.checkpoints import verified
from train.config import parse_config
from train.loop import train


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {f"{f.name}/{k}": v for f in sorted(folder.glob("*.safetensors")) for k, v in read_tensors(f)[0].items()}


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.timeout(400)
def test_resume_continues_bit_exactly(
    tmp_path: Path, tiny_config: Callable[..., dict], train_runs: Callable[..., object]
) -> None:
    """Four updates at once equal two, a new process, and two more: weights, metrics; full in bf16 and lora in fp32."""
    whole, halves, more = [], [], []
    for mode, precision in [("full", "bf16"), ("lora", "fp32")]:
        for kind, target in (("whole", whole), ("parts", halves)):
            config = tiny_config(tmp_path / f"{mode}-{kind}", updates=4, checkpoint={"every": 2, "keep": 2})
            config["model"] |= {"mode": mode, "precision": precision}
            if kind == "parts":
                more.append(config)
                config = config | {"updates": 2}
            target.append(config)
    train_runs(1, whole + halves)
    train_runs(1, more, "--resume")
    for mode in ("full", "lora"):
        expected, found = weights(tmp_path / f"{mode}-whole", 4), weights(tmp_path / f"{mode}-parts", 4)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert lines(tmp_path / f"{mode}-whole") == lines(tmp_path / f"{mode}-parts")
        before = weights(tmp_path / f"{mode}-whole", 2)
        assert any(not torch.equal(expected[key], before[key]) for key in expected)

    # The finished run also serves the refusals: a copy is damaged in different ways.
    run = tmp_path / "damaged"
    shutil.copytree(tmp_path / "full-parts", run)
    shard = next((run / "checkpoints" / "step-000004" / "generator").rglob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"damaged.*optim_states"):
        verified(run)
    (run / "checkpoints" / "latest").write_text("step-000002")
    assert verified(run).name == "step-000002"
    (run / "checkpoints" / "step-000002" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="manifest"):
        verified(run)
    (run / "checkpoints" / "latest").unlink()
    with pytest.raises(CheckpointError, match="latest"):
        verified(run)


def test_a_run_is_not_overwritten(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="--resume"):
        train(parse_config(tiny_config(tmp_path), "test"))


def test_resume_without_a_checkpoint(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    with pytest.raises(CheckpointError, match="latest"):
        train(parse_config(tiny_config(tmp_path / "none"), "test"), resume=True)

"""Gradient accumulation with two engines works here, and fails with DeepSpeed's own counting of micro-steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from magicdistill_core.safetensors_file import read_tensors

FILES = ("generator.safetensors", "fake_lora.safetensors")


def weights(run: Path, step: int) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {f"{file}/{name}": t.float() for file in FILES for name, t in read_tensors(folder / file)[0].items()}


@pytest.mark.timeout(600)
def test_accumulated_micro_batches_equal_one_batch_and_deepspeeds_own_counting_does_not(
    tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """Training with 2 micro-batches of 1 sample equals training with 1 micro-batch of 2 samples.

    It fails if each engine finds the end of an update by its own count of micro-steps. That count is a count of `step`
    calls: with one call per update, DeepSpeed takes every other call for a micro-step and does nothing.
    """
    runs = {}
    for name, micro, accumulation in (("whole", 2, 1), ("ours", 1, 2), ("naive", 1, 2)):
        config = tiny_config(tmp_path / name, updates=3, checkpoint={"every": 1, "keep": 3})
        config["data"] |= {"micro_batch": micro, "accumulation": accumulation}
        life = live(config, naive_accumulation=name == "naive")
        assert life.codes == [0], life.said
        runs[name] = weights(tmp_path / name, 3)
    start = weights(tmp_path / "whole", 1)

    def distance(name: str) -> float:
        """Distance between the end points of a run and of the expected run, relative to the expected way."""
        whole = runs["whole"]
        off = sum(float((runs[name][key] - whole[key]).square().sum()) for key in whole)
        way = sum(float((whole[key] - start[key]).square().sum()) for key in whole)
        return (off / way) ** 0.5

    assert distance("ours") < 0.02
    assert distance("naive") > 0.3

"""Gradients of bf16 networks that are added in fp32 over micro-batches and processes, against exact sums."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train.engines.engine
from train.config.reading import parse_config
from train.config.sections import OptimizerConfig
from train.config.training import TrainConfig
from train.distributed import init_distributed
from train.engines.engine import Engine, deepspeed_config, has_fp32_gradients
from train.engines.state import EngineState

SIZE, PROCESSES, MICRO_BATCHES = 6, 2, 64
# bf16 has 8 significant bits: near 1 it cannot hold this difference.
SMALL = 2.0**-8


class Weighted(nn.Module):
    """A scalar whose gradient is the input; with a frozen weight it is a branch."""

    def __init__(self, *, branch: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        if branch:
            self.base = nn.Parameter(torch.ones(SIZE), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum()


def gradient(process: int, micro: int) -> Tensor:
    """The gradient of one backward pass: 1 once, then values that bf16 cannot add to it exactly."""
    value = SMALL / (1 + process) if micro or process else 1.0
    return torch.full((SIZE,), value, dtype=torch.bfloat16)


def mean_gradient(micro_batches: int) -> float:
    """The exact mean over the processes and micro-batches."""
    values = [gradient(process, micro)[0].double() for process in range(PROCESSES) for micro in range(micro_batches)]
    return float(torch.stack(values).mean())


def work(process: int, port: int, config: TrainConfig, stage: int, branch: bool, wide: bool | None, out: Any) -> None:
    """Make one update in a forked process; send the gradients that Adam received, by their place."""
    os.environ.update(RANK=str(process), LOCAL_RANK=str(process), WORLD_SIZE=str(PROCESSES))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_distributed()
    if wide is not None:
        train.engines.engine.has_fp32_gradients = lambda config, network: wide
    network, beta = Weighted(branch=branch), 0.5
    optimizer = OptimizerConfig(lr=1e-3, betas=(0.0, beta), clip=1e6)
    engine = Engine(network, [network.weight], config, optimizer, stage=stage)
    for micro in range(config.data.accumulation):
        loss = engine.engine(gradient(process, micro))
        engine.backward(loss, last=micro == config.data.accumulation - 1)
    engine.step(0)
    state = EngineState(engine.engine)
    parts = [(part.start, (part.tensors["exp_avg_sq"] / (1 - beta)).sqrt().tolist()) for part in state.partitions()]
    out.put((parts, state.below(1.0, beta), state.below(1e-6, beta)))


@pytest.fixture
def received(tmp_path: Path, tiny_config: Callable[..., dict]) -> Callable[..., tuple[Tensor, list]]:
    """The gradients that Adam receives on two processes, and the counts of those below two epsilons."""

    def run(stage: int, accumulation: int, *, branch: bool = False, wide: bool | None = None) -> tuple[Tensor, list]:
        raw = tiny_config(tmp_path / "run")
        raw["model"] |= {"precision": "bf16"}
        raw["data"] |= {"accumulation": accumulation}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("fork")
        out = context.Queue()
        arguments = (port, parse_config(raw, "test"), stage, branch, wide, out)
        processes = [context.Process(target=work, args=(number, *arguments)) for number in range(PROCESSES)]
        for process in processes:
            process.start()
        results = [out.get(timeout=500) for _ in processes]
        for process in processes:
            process.join(60)
        found = torch.full((SIZE,), float("nan"))
        for parts, *_ in results:
            for start, values in parts:
                found[start : start + len(values)] = torch.tensor(values)
        return found, [result[1:] for result in results]

    return run


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("accumulation", "branch"), [(MICRO_BATCHES, False), (1, True)])
def test_the_sums_are_exact(received: Callable, stage: int, accumulation: int, branch: bool) -> None:
    """All weights with accumulation, and a branch without: small gradients are not lost, whatever they are added to."""
    found, counts = received(stage, accumulation, branch=branch)
    expected = mean_gradient(accumulation)
    torch.testing.assert_close(found, torch.full((SIZE,), expected), rtol=1e-5, atol=0)
    totals = [
        (sum(below for below, _ in column), sum(total for _, total in column)) for column in zip(*counts, strict=True)
    ]
    assert totals == [(SIZE, SIZE), (0, SIZE)]  # all are below epsilon 1, none below 1e-6


@pytest.mark.timeout(600)
def test_the_same_sums_in_bf16_are_wrong(received: Callable) -> None:
    found, _ = received(2, MICRO_BATCHES, wide=False)
    assert abs(float(found[0]) / mean_gradient(MICRO_BATCHES) - 1) > 0.05


def test_fp32_is_used_where_it_matters(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    def used(precision: str, accumulation: int, *, branch: bool) -> bool:
        raw = tiny_config(tmp_path / "run")
        raw["model"] |= {"precision": precision}
        raw["data"] |= {"accumulation": accumulation}
        return has_fp32_gradients(parse_config(raw, "test"), Weighted(branch=branch))

    assert used("bf16", 1, branch=True)
    assert used("bf16", 2, branch=False)
    assert not used("bf16", 1, branch=False)
    assert not used("fp32", 2, branch=True)


def test_deepspeed_gets_settings_that_it_knows(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    config = parse_config(tiny_config(tmp_path / "run"), "test")
    for stage in range(4):
        settings = deepspeed_config(config, 1.0, stage, fp32_gradients=True, trained=100)
        assert settings["communication_data_type"] == "fp32"
        # DeepSpeed refuses it at stage 0.
        assert ("data_types" in settings) == (stage > 0)
        assert settings["zero_optimization"]["reduce_bucket_size"] == 100
        assert "communication_data_type" not in deepspeed_config(config, 1.0, stage)
    large = deepspeed_config(config, 1.0, 3, trained=13 * 10**9)
    assert large["zero_optimization"]["reduce_bucket_size"] == 5 * 10**8

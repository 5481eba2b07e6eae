"""Memory of the backward pass: no method holds more than one graph of a large network at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import deepspeed
import pytest
import torch
from torch import Tensor, nn

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.null_prompt import load_null_prompt
from train.config.methods import DISCRIMINATOR, GENERATOR
from train.config.reading import parse_config
from train.engines.networks import Networks, build_networks
from train.methods import MicroBatch, build_method
from train.methods.draws import Draws

CPU = torch.device("cpu")
SUPERVISED = {"name": "w2s", "fake_updates": 1, "supervision": {"weight": 0.25}}
DMD2 = {"name": "dmd2", "fake_updates": 1, "discriminator": {"optimizer": {"lr": 1e-3}, "weight": 0.5}}


class Bare(nn.Module):
    """Replaces DeepSpeed: calls the network itself and records the accumulation boundaries."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.boundaries: list[bool] = []

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.module(*given, **named)

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        self.boundaries.append(boundary)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.fixture
def prepare(
    tmp_path: Path, tiny_config: Callable[..., dict], negative_prompt: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, Networks]]:
    """A method and its networks, without DeepSpeed."""
    monkeypatch.setattr(
        deepspeed, "initialize", lambda model, optimizer, **settings: (Bare(model), optimizer, None, None)
    )

    def build(method: dict, checkpointing: bool = True) -> tuple[Any, Networks]:
        raw = tiny_config(tmp_path / "run", method=method)
        raw["model"] |= {"activation_checkpointing": checkpointing}
        if method["name"] == "cfg":
            raw["model"] |= {"negative_prompt": str(negative_prompt)}
            del raw["fake_optimizer"]
        config = parse_config(raw, "run")
        teacher = config.method.prepared(load_checkpoint(config.model.teacher), config.model.mode)
        negative = config.model.negative_prompt
        negative = None if negative is None else load_null_prompt(negative)
        networks = build_networks(config, teacher, teacher.null_prompt, CPU, negative)
        return build_method(config, networks, Draws(0), CPU), networks

    return build


def micro_batch() -> MicroBatch:
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return MicroBatch(concat_condition(latents[:, :, :1], 2), [0], 1, (16, 2, 4, 4), lambda: latents)


def held_block_inputs(networks: Networks) -> Callable[[], int]:
    """Watch the generator's blocks; the result returns the largest number of their inputs held at the same time."""
    held: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
    most = [0]

    def watch(block: nn.Module, given: tuple) -> None:
        if torch.is_grad_enabled():
            held[id(given[0])] = given[0]
            most[0] = max(most[0], len(held))

    transformer = networks.generator.network.transformer
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.register_forward_pre_hook(watch)
    return lambda: most[0]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [({"name": "w2s", "fake_updates": 1}, 1), (SUPERVISED, 2), ({"name": "cfg"}, 2)],
    ids=["w2s", "supervised", "cfg"],
)
def test_the_generator_holds_one_graph_at_a_time(
    prepare: Callable[..., tuple[Any, Networks]], settings: dict, parts: int
) -> None:
    method, networks = prepare(settings)
    most = held_block_inputs(networks)
    engine = networks.generator
    method.loss(GENERATOR, micro_batch()).backward(engine, last=False)
    method.loss(GENERATOR, micro_batch()).backward(engine, last=True)
    assert most() == 2  # one for each of the tiny network's blocks
    assert engine.engine.boundaries == [False] * (2 * parts - 1) + [True]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_discriminator_recomputes_where_the_networks_do(
    prepare: Callable[..., tuple[Any, Networks]], checkpointing: bool
) -> None:
    method, networks = prepare(DMD2, checkpointing)
    engine = networks.engine(DISCRIMINATOR)
    judged = []
    engine.engine.module.block.register_forward_hook(lambda *call: judged.append(call))
    loss = method.loss(DISCRIMINATOR, micro_batch())
    asked = len(judged)
    assert asked >= 2
    loss.backward(engine, last=True)
    assert len(judged) == asked * (2 if checkpointing else 1)

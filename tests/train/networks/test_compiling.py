"""Compiled blocks: equal to eager ones in training and sampling, and compiled once for each kind of call."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import CONCAT
from tests.makers import hunyuan_shape, random_prompt, seeded_network
from train.config.reading import parse_config
from train.networks import compiling
from train.networks.compiling import compile_blocks
from train.networks.roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations
from train.run import trainer
from train.tools.export import export_run

pytestmark = pytest.mark.slow


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts compiled graphs. PyTorch's own operators run them: a C++ compiler would take minutes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    yield counter
    torch._dynamo.reset()


def test_roles_share_graphs_and_compute_what_eager_blocks_do(counter: CompileCounterWithBackend) -> None:
    networks = {}
    for name in ("eager", "compiled"):
        transformer = seeded_network(hunyuan_shape(single_blocks=2))
        for seed, branch in enumerate(("generator", "fake")):
            add_branch(transformer, branch, 4, 8.0, seed)
            for key, parameter in transformer.named_parameters():
                if f"lora_B.{branch}" in key:
                    torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(seed))
        if name == "compiled":
            compile_blocks(transformer)
        checkpoint_activations(transformer.train())
        networks[name] = RoleNetwork(transformer, random_prompt())
    x = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = CONCAT.condition(StartImage(x[:, :, :1]), 2)

    def velocity(name: str, role: Role) -> torch.Tensor:
        return networks[name](x, torch.tensor([0.5]), condition, role)

    def gradients(name: str, role: Role) -> list[torch.Tensor]:
        assert role.adapter is not None
        parameters = branch_parameters(networks[name].transformer, role.adapter)
        return list(torch.autograd.grad(velocity(name, role).square().sum(), parameters))

    def check(*roles: Role) -> None:
        for role in roles:
            with torch.no_grad():
                torch.testing.assert_close(velocity("compiled", role), velocity("eager", role))

    check(Role("fake", 1.0), Role("generator", 1.0), BASE)
    for role in (Role("fake", 1.0), Role("generator", 1.0)):
        torch.testing.assert_close(gradients("compiled", role), gradients("eager", role))
    graphs = counter.frame_count
    # Three branches without gradients and two with, for double blocks and for single blocks; the first single block
    # has another graph, because the memory of its input is laid out otherwise.
    assert 10 <= graphs <= 15
    check(Role("fake", 0.25), Role("generator", 1.0), Role("fake", 0.5), Role("fake", 1.0), BASE)
    torch.testing.assert_close(gradients("compiled", Role("fake", 0.75)), gradients("eager", Role("fake", 0.75)))
    assert counter.frame_count == graphs


def test_a_training_equals_the_eager_one_and_compiles_in_its_first_round_only(
    counter: CompileCounterWithBackend,
    tiny_config: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = []
    usual = trainer.Trainer._round

    def counted(self: trainer.Trainer) -> dict[str, float]:
        metrics = usual(self)
        graphs.append(counter.frame_count)
        return metrics

    monkeypatch.setattr(trainer.Trainer, "_round", counted)
    for name, compile in (("eager", False), ("compiled", True)):
        tree = tiny_config(tmp_path / name, updates=3)
        settings = {"mode": "lora", "compile": compile, "activation_checkpointing": True}
        trainer.train(parse_config(tree | {"model": tree["model"] | settings}, "config"))
        export_run(tmp_path / name, tmp_path / f"{name}.safetensors")
    assert graphs[:3] == [0, 0, 0]
    assert 0 < graphs[3] == graphs[4] == graphs[5]
    found, expected = (load_checkpoint(tmp_path / f"{name}.safetensors").state for name in ("compiled", "eager"))
    for key, weight in expected.items():
        # Adam makes full steps also for tiny gradients, whose rounding differs.
        assert (found[key] - weight).abs().max() < 5e-4, key
        assert (found[key] - weight).abs().mean() < 1e-5, key


def test_settings_that_cannot_be_compiled_are_refused(tiny_config: Callable[..., dict], tmp_path: Path) -> None:
    tree = tiny_config(tmp_path / "run")
    model = tree["model"] | {"compile": True}
    with pytest.raises(ConfigError, match=r"zero.stage=3.*zero.stage=2, or model.compile=false"):
        parse_config(tree | {"model": model, "zero": {"stage": 3}}, "config")
    with pytest.raises(ConfigError, match=r"model.compile and context_parallel .*context_parallel=1"):
        parse_config(tree | {"model": model, "context_parallel": 2}, "config")
    with pytest.raises(ConfigError, match=r"model.compile and model.keep_attention"):
        parse_config(tree | {"model": model | {"keep_attention": True}}, "config")

"""The agreement of the scores' difference in bf16 with fp32, on the pocket model, and what the log says about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor, nn

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import add_noise
from magicdistill_core.pocket.files import TEACHER
from train.config.methods import FAKE
from train.config.reading import parse_config
from train.engines.networks import Networks, build_networks
from train.methods import Method, MicroBatch, build_method
from train.methods.draws import Draws
from train.networks.network import load_network, network_velocity
from train.watch.signal import SignalMeter
from train.watch.signal_findings import signal_findings

CPU = torch.device("cpu")
SHAPE = (16, 2, 12, 12)


class Bare(nn.Module):
    """Replaces DeepSpeed's engine: the network in bf16, without an optimizer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.bfloat16()

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.module(*given, **named)


@pytest.fixture
def built(
    tmp_path: Path, tiny_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> tuple[Method[Any], Networks, Any]:
    """W2S on the pocket teacher, with its networks."""
    monkeypatch.setattr(deepspeed, "initialize", lambda model, **settings: (Bare(model), None, None, None))
    raw = tiny_config(tmp_path / "run", method={"name": "w2s"})
    raw["model"] |= {"teacher": "pocket", "precision": "bf16"}
    config = parse_config(raw, "test")
    teacher = load_checkpoint(TEACHER)
    networks = build_networks(config, teacher, teacher.null_prompt, CPU)
    return build_method(config, networks, Draws(0), CPU), networks, config


@pytest.fixture
def batch() -> MicroBatch:
    image = torch.randn(1, 16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return MicroBatch(concat_condition(image, 2), [0], 1, SHAPE, lambda: torch.zeros(1, *SHAPE))


def set_branch(networks: Networks, size: float) -> dict[str, Tensor]:
    """Give the branch's up matrices this standard deviation; returns its bf16 tensors by name."""
    found = {}
    for number, (name, parameter) in enumerate(networks.fake.network.transformer.named_parameters()):
        if f".lora_B.{FAKE}." in name:
            generator = torch.Generator().manual_seed(number)
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
        if ".lora_" in name:
            found[name] = parameter.detach().float()
    return found


def merged_difference(config: Any, branch: dict[str, Tensor], batch: MicroBatch, x: Tensor, sigma: Tensor) -> Tensor:
    """`r - f` of an fp32 network with the branch merged into its bf16 weights."""
    checkpoint = load_checkpoint(TEACHER)
    size, velocities = config.model.fake_branch, []
    for weight in (config.method.a_weak, config.method.a_strong):
        network = load_network(checkpoint, torch.bfloat16).float()
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            for name, up in branch.items():
                layer, found, _ = name.partition(f".lora_B.{FAKE}.weight")
                if found:
                    down = branch[f"{layer}.lora_A.{FAKE}.weight"]
                    parameters[f"{layer}.weight"] += weight * size.alpha / size.rank * up @ down
            velocities.append(network_velocity(network, batch.condition, checkpoint.null_prompt)(x, sigma))
    return velocities[0] - velocities[1]


def test_the_agreement_grows_with_the_branch_and_is_the_cosine_with_fp32(
    built: tuple[Method[Any], Networks, Any], batch: MicroBatch
) -> None:
    method, networks, config = built
    set_branch(networks, 0.0)
    assert method.agreement(batch) == 0
    found = []
    for size in (1e-3, 1e-2, 0.1):
        branch = set_branch(networks, size)
        found.append(float(method.agreement(batch)))
    assert found[0] < 0.5 < 0.9 < found[2] <= 1.001
    assert found[0] < found[1] < found[2]
    # The largest branch again, by plain PyTorch.
    with torch.no_grad():
        sigma = method._level("signal", batch)
        x = add_noise(method._rollout(batch), method._noise("signal", batch), sigma)
        real, fake = (networks.score(batch.condition, weight)(x, sigma) for weight in (0.25, 1.0))
    expected = torch.cosine_similarity(
        (real - fake).flatten(), merged_difference(config, branch, batch, x, sigma).flatten(), dim=0
    )
    assert abs(found[2] - float(expected)) < 0.01


def test_it_is_measured_at_the_start_and_at_intervals(built: tuple[Method[Any], Networks, Any]) -> None:
    method, networks, config = built

    def due(warmup: int, every: int) -> list[int]:
        logging = config.logging.model_copy(update={"signal_every": every})
        settings = config.method.model_copy(update={"fake_warmup": warmup})
        changed = config.model_copy(update={"logging": logging, "method": settings})
        meter = SignalMeter(changed, networks, method)
        return [position for position in range(1 - warmup, 101) if meter.due(position)]

    assert due(10, 50) == [0, 50, 100]
    assert due(0, 50) == [1, 50, 100]
    assert due(10, 0) == []


def test_findings_say_which_setting_to_change(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    config = parse_config(tiny_config(tmp_path), "test")
    assert signal_findings({}, config) == ()
    assert signal_findings({"signal/agreement": 0.72, "signal/fake_below_eps": 0.5}, config) == ()
    noise, epsilon = signal_findings({"signal/agreement": 0.7, "signal/fake_below_eps": 0.6}, config)
    assert "method.fake_warmup" in noise
    assert "60 %" in epsilon
    assert "fake_optimizer.eps" in epsilon

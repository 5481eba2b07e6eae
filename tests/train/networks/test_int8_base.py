"""A frozen base in int8: its layers against plain arithmetic, a training on it, its memory, and refusals."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from magicdistill_core.int8 import quantise_rows
from tests.makers import hunyuan_shape, random_prompt, seeded_network, wan_shape
from train.config.reading import parse_config
from train.data.dataset_index import sample_shapes
from train.engines.teacher import load_teacher
from train.memory.bytes_held import META
from train.memory.training import memory_of
from train.networks.int8_base import Int8Linear, quantise_base
from train.run.trainer import train
from train.tools.export import export_run


def test_a_layer_computes_with_its_rounded_weights() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 20), torch.randn(2, 5, 48, requires_grad=True)
    rounded, scale = quantise_rows(layer.weight)
    found = Int8Linear(layer)
    y = found(x)
    torch.testing.assert_close(y, x @ (rounded.float() * scale).T + layer.bias)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * y @ (rounded.float() * scale))
    assert (found.weight.dtype, found.weight.nbytes) == (torch.int8, 48 * 20)


def test_a_layer_keeps_its_scales_in_fp32_and_stores_no_expanded_weight() -> None:
    layer = Int8Linear(nn.Linear(64, 64)).bfloat16()
    assert (layer.scale.dtype, layer.weight.dtype) == (torch.float32, torch.int8)
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes) or tensor, lambda t: t):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert sum(saved) == layer.weight.nbytes + layer.scale.nbytes


@pytest.mark.parametrize("family", ["hunyuan_video", "wan"])
def test_all_layers_of_the_blocks_are_rounded_and_the_errors_are_logged(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    wan = family == "wan"
    network = seeded_network(wan_shape(), IMAGE_TO_VIDEO) if wan else seeded_network(hunyuan_shape())
    blocks = network.blocks if wan else [*network.transformer_blocks, *network.single_transformer_blocks]
    linear = sum(type(module) is nn.Linear for block in blocks for module in block.modules())
    outside = sum(type(module) is nn.Linear for module in network.modules()) - linear
    with caplog.at_level(logging.INFO):
        quantise_base(network, random_prompt(pooled_dim=None if wan else 768))
    assert sum(isinstance(module, Int8Linear) for module in network.modules()) == linear > 0
    assert sum(type(module) is nn.Linear for module in network.modules()) == outside > 0
    (record,) = [record for record in caplog.records if "int8" in record.message]
    velocity, gradient = record.args  # type: ignore[misc]
    assert 0 < velocity < 5
    assert 0 < gradient < 10


def test_a_base_whose_errors_are_large_is_refused() -> None:
    network = seeded_network(hunyuan_shape())
    with torch.no_grad():
        # One huge value in a row leaves no levels for the others.
        for module in network.single_transformer_blocks.modules():
            if type(module) is nn.Linear:
                module.weight[:, 0] += 300 * module.weight.std()
    with pytest.raises(ConfigError, match=r"velocity is off by .*model.base_int8=false"):
        quantise_base(network, random_prompt())


def test_a_training_on_an_int8_base_is_close_to_the_usual_one(
    tiny_config: Callable[..., dict], teacher_file: Path, tmp_path: Path
) -> None:
    for name, rounded in (("usual", False), ("int8", True)):
        tree = tiny_config(tmp_path / name)
        model = tree["model"] | {"mode": "lora", "base_int8": rounded, "activation_checkpointing": True}
        train(parse_config(tree | {"model": model}, "config"))
        export_run(tmp_path / name, tmp_path / f"{name}.safetensors")
    teacher = load_checkpoint(teacher_file).state
    usual, rounded = (load_checkpoint(tmp_path / f"{name}.safetensors").state for name in ("usual", "int8"))
    # Exports hold the teacher's own weights: those without a branch are equal.
    assert all(torch.equal(rounded[key], teacher[key]) for key in teacher if torch.equal(usual[key], teacher[key]))
    changes = [
        torch.cat([(state[key] - teacher[key]).flatten() for key in teacher]).double() for state in (usual, rounded)
    ]
    assert torch.cosine_similarity(*changes, dim=0) > 0.9


def test_the_memory_of_the_base_is_halved(tiny_config: Callable[..., dict], tmp_path: Path) -> None:
    def weights(rounded: bool) -> int:
        tree = tiny_config(tmp_path / "run")
        model = tree["model"] | {"mode": "lora", "precision": "bf16", "base_int8": rounded}
        config = parse_config(tree | {"model": model}, "config")
        return memory_of(config, load_teacher(config, "meta"), sample_shapes("hunyuan_video", 5, 32, 32), 1).weights

    network = seeded_network(hunyuan_shape(refiner_blocks=2)).to(META)
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    layers = [module for block in blocks for module in block.modules() if type(module) is nn.Linear]
    saved = sum(layer.weight.numel() - 4 * layer.out_features for layer in layers)
    assert weights(False) - weights(True) == saved


def test_settings_that_do_not_fit_are_refused(tiny_config: Callable[..., dict], tmp_path: Path) -> None:
    tree = tiny_config(tmp_path / "run")
    for model, zero in (({}, {}), ({"mode": "lora"}, {"zero": {"stage": 3}})):
        with pytest.raises(ConfigError, match=r"model.base_int8 .*model.mode=lora"):
            parse_config(tree | {"model": tree["model"] | model | {"base_int8": True}} | zero, "config")

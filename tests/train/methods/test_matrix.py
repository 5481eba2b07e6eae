"""Every method makes an update at every ZeRO stage, in both precisions, and changes what it trains."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_tensors
from tests.makers import file_state, hunyuan_shape, metrics_of, random_prompt
from train.config.methods import FAKE, AnyMethod, MatchingConfig
from train.config.reading import parse_config
from train.config.training import ModelConfig

METHODS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(AnyMethod)[0])}

# Stage 1 differs from stage 2 only in the gradients. If bf16 gradients are added in fp32, DeepSpeed has a class of
# its own for stage 1.
COMBINATIONS = [
    *[(mode, 0, "fp32") for mode in ("full", "lora")],
    ("full", 0, "bf16"),
    ("lora", 1, "bf16"),
    ("full", 2, "fp32"),
    *[(mode, 2, "bf16") for mode in ("full", "lora")],
    *[pytest.param("full", 3, precision, marks=pytest.mark.slow) for precision in ("fp32", "bf16")],
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher with a guidance embedding, which mode `lora` needs for `cfg`, and a generator of two steps."""
    folder = tmp_path_factory.mktemp("inputs")
    size = {"shift": 5.0, "width": 32, "height": 32, "frames": 5, "fps": 24}
    guided = file_state(hunyuan_shape(refiner_blocks=2, guidance_embed=True))
    save_checkpoint(folder / "guided.safetensors", guided, Recipe(kind="teacher", steps=28, **size), random_prompt())
    few = file_state(hunyuan_shape(refiner_blocks=2), seed=1)
    save_checkpoint(folder / "few.safetensors", few, Recipe(kind="generator", steps=2, **size), random_prompt())
    return {name: folder / f"{name}.safetensors" for name in ("guided", "few")}


def settings(name: str, tree: dict, inputs: dict[str, Path], negative_prompt: Path) -> dict:
    """Add what one method needs."""
    method: dict[str, Any] = {"name": name}
    if issubclass(METHODS[name], MatchingConfig):
        method["fake_updates"] = 1
    else:
        del tree["fake_optimizer"]
    if name == "dmd2":
        method["discriminator"] = {"optimizer": {"lr": 1e-3}}
    elif name == "one_step":
        method["few_step_generator"] = str(inputs["few"])
        tree["schedule"] = {"steps": 1}
    elif name == "cfg":
        tree["model"] |= {"negative_prompt": str(negative_prompt), "teacher": str(inputs["guided"])}
    return tree | {"method": method}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mode", "stage", "precision"), COMBINATIONS)
def test_every_method_makes_an_update(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    live: Callable[..., Any],
    inputs: dict[str, Path],
    negative_prompt: Path,
    mode: str,
    stage: int,
    precision: str,
) -> None:
    trees = {}
    for name in METHODS:
        tree = tiny_config(tmp_path / name, updates=1, zero={"stage": stage}, generator_optimizer={"lr": 1e-2})
        tree["model"] |= {"mode": mode, "precision": precision}
        tree["data"] |= {"accumulation": 1}
        if name != "one_step" or mode == "full":  # one_step is refused in mode lora
            trees[name] = settings(name, tree, inputs, negative_prompt)
    files = {name: tmp_path / f"{name}.yaml" for name in trees}
    for name, file in files.items():
        file.write_text(yaml.safe_dump(trees[name]))
    first, *others = trees
    done = live(trees[first], then=[[str(files[name])] for name in others])
    assert done.codes == [0], done.said[-4000:]
    for name, tree in trees.items():
        trained = parse_config(tree, name).method.trained
        (row,) = metrics_of(tmp_path / name)
        assert all(math.isfinite(value) for value in row.values()), (name, row)
        assert {f"{role}/loss" for role in trained if role != "generator"} <= row.keys()
        # Without ZeRO in fp32, DeepSpeed reports no gradient norms.
        if (stage, precision) != (0, "fp32"):
            assert all(row[f"{role}/gradient_norm"] > 0 for role in trained), (name, row)
        assert all(0 <= row[f"signal/{role}_below_eps"] <= 1 for role in trained if role != "discriminator"), row
        # The signal of a branch that is not zero any more, against fp32.
        assert ("signal/agreement" in row) == (FAKE in trained and precision == "bf16"), (name, row)
        assert 0 < row.get("signal/agreement", 1) <= 1.001, (name, row)
        folder = tmp_path / name / "checkpoints" / "step-000001"
        if mode == "full":
            before = load_checkpoint(inputs["few"] if name == "one_step" else Path(tree["model"]["teacher"])).state
            after = load_checkpoint(folder / "generator.safetensors").state
            assert all(torch.isfinite(tensor).all() for tensor in after.values()), name
            key = "double_blocks.0.img_attn_qkv.weight"
            assert (after[key].float() - before[key]).abs().max() > 1e-3, name
        else:
            assert is_trained(read_tensors(folder / "generator_lora.safetensors")[0]), name
        if FAKE in trained:
            assert is_trained(read_tensors(folder / "fake_lora.safetensors")[0]), name


def is_trained(lora: dict[str, Tensor]) -> bool:
    """Whether the LoRA is finite and has left its start, where every up matrix is zero."""
    ups = [tensor.float() for key, tensor in lora.items() if ".lora_up." in key or ".lora_B." in key]
    return bool(ups) and all(bool(torch.isfinite(up).all()) for up in ups) and any(bool(up.any()) for up in ups)


def test_every_mode_and_precision_is_in_the_matrix() -> None:
    chosen = [getattr(combination, "values", combination) for combination in COMBINATIONS]
    for place, name in ((0, "mode"), (2, "precision")):
        assert {values[place] for values in chosen} == set(get_args(ModelConfig.model_fields[name].annotation))

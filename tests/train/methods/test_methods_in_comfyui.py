"""The export of every method computes the same velocities in a real ComfyUI as in the trainer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, concat_condition
from tests.makers import StockSide
from train.networks.network import load_network, network_velocity
from train.tools.export import export_run

GUIDANCE = 3.0
IN_LORA_MODE = ("dmd", "lcm")
# Methods with a fake branch.
PAIRED = ("w2s", "dmd", "dmd2", "supervised", "one_step")
# Steps of the exported model: few for a generator, 28 for a teacher.
STEPS = dict.fromkeys(PAIRED, 4) | {"one_step": 1, "lcm": 4, "cfg": 28, "sft": 28, "widen": 28}


def _configs(folder: Path, build: Callable[..., dict], teacher: Path, negative: Path) -> dict[str, dict]:
    """Configurations that train every method for one update, from the kind of model file that it expects."""
    few_step = {"kind": "generator", "steps": 4}
    whole = load_checkpoint(teacher)
    recipe = whole.recipe.model_copy(update=few_step)
    save_checkpoint(folder / "few_step.safetensors", whole.state, recipe, whole.null_prompt)
    narrow = whole.state | {"img_in.proj.weight": whole.state["img_in.proj.weight"][:, :16].clone()}
    t2v = folder / "t2v.safetensors"
    save_checkpoint(t2v, narrow, whole.recipe.model_copy(update={"i2v_mode": "none"}), whole.null_prompt)
    methods = {
        "w2s": {"name": "w2s"},
        "dmd": {"name": "dmd"},
        "dmd2": {"name": "dmd2", "discriminator": {"optimizer": {"lr": 1e-3}}},
        "supervised": {"name": "w2s", "supervision": {"weight": 0.25}},
        "one_step": {"name": "one_step", "few_step_generator": str(folder / "few_step.safetensors")},
        "lcm": {"name": "lcm", "ode_steps": 4},
        "cfg": {"name": "cfg"},
        "sft": {"name": "sft"},
        "widen": {"name": "sft", "widen": True},
    }
    model = {"cfg": {"negative_prompt": str(negative), "embedded_guidance": GUIDANCE}, "widen": {"teacher": str(t2v)}}
    configs = {}
    for name, method in methods.items():
        paired = {"fake_updates": 1} if name in PAIRED else {}
        config = build(folder / name, method=method | paired, updates=1, guard={"action": "off"})
        config["model"] |= model.get(name, {})
        if name not in PAIRED:
            del config["fake_optimizer"]
        config["schedule"] = {"steps": STEPS[name]}
        if name in IN_LORA_MODE:
            config["model"]["mode"] = "lora"
        configs[name] = config
    return configs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_export_has_its_recipe_and_the_velocities_of_the_trainer(
    tmp_path: Path,
    teacher_file: Path,
    negative_prompt: Path,
    tiny_config: Callable[..., dict],
    train_runs: Callable[..., None],
    stock_side: StockSide,
) -> None:
    configs = _configs(tmp_path, tiny_config, teacher_file, negative_prompt)
    train_runs(1, list(configs.values()))
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(1, 1, 2, 4, 4)
    mask[:, :, :1] = 0
    prompt = load_checkpoint(teacher_file).null_prompt
    inputs = {
        "x": torch.randn(2, 16, 2, 4, 4, generator=generator),
        "sigma": torch.tensor([0.9375, 0.625]),
        "image": torch.randn(2, 16, 1, 4, 4, generator=generator),
        "mask": mask,
        "text": prompt.text_states.repeat(2, 1, 1),
        "pooled": prompt.pooled.repeat(2, 1),
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    jobs = []
    for name in configs:
        export_run(tmp_path / name, tmp_path / f"{name}.safetensors")
        job = {"run": "loaders", "model": str(tmp_path / f"{name}.safetensors"), "guidance": GUIDANCE}
        jobs.append(job | {"inputs": str(tmp_path / "inputs.safetensors")})
    for name, answer in zip(configs, stock_side(jobs), strict=True):
        expected = _velocity(tmp_path / f"{name}.safetensors", inputs)
        for loader in ("stock", "ours"):
            assert (answer[loader] - expected).abs().max() < 1e-4, f"{name} by the {loader} loader"
        kind = "teacher" if STEPS[name] == 28 else "generator"
        assert f"{kind}: {STEPS[name]} steps, shift 5, euler" in bytes(answer["said"].tolist()).decode(), name
        assert not torch.equal(_velocity(teacher_file, inputs), expected) or name == "widen", f"{name} learned nothing"


def _velocity(file: Path, inputs: dict[str, Tensor]) -> Tensor:
    """The velocity that the trainer's network computes with a model file."""
    checkpoint = load_checkpoint(file)
    condition = concat_condition(inputs["image"] * LATENT_SCALE, inputs["x"].shape[2])
    velocity = network_velocity(load_network(checkpoint), condition, checkpoint.null_prompt, GUIDANCE)
    with torch.no_grad():
        return velocity(inputs["x"], inputs["sigma"])

"""Teachers with the inputs that a method adds, runs that start from them and resume, and learning rate schedules."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, network_shape
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.recipe import Recipe
from train.config.methods import CFGConfig, SFTConfig, W2SConfig
from train.config.reading import parse_config
from train.config.sections import OptimizerConfig
from train.engines.networks import Networks
from train.methods.draws import Draws
from train.methods.sft import FineTuning
from train.networks.roles import BASE

TRAINED = "double_blocks.0.img_attn_qkv.weight"


@pytest.fixture
def teacher(teacher_file: Path) -> Checkpoint:
    """The tiny concat teacher."""
    return load_checkpoint(teacher_file)


def as_text_to_video(teacher: Checkpoint) -> Checkpoint:
    """The tiny teacher without image inputs and without a recipe."""
    state = dict(teacher.state)
    state["img_in.proj.weight"] = state["img_in.proj.weight"][:, :16].clone()
    return replace(teacher, state=state, shape=network_shape(state), recipe=None)


def test_most_methods_do_not_change_the_teacher(teacher: Checkpoint) -> None:
    assert W2SConfig().prepared(teacher, "full") is teacher
    assert SFTConfig().prepared(teacher, "lora") is teacher


def test_a_text_to_video_teacher_is_widened(teacher: Checkpoint) -> None:
    widened = SFTConfig(widen=True).prepared(as_text_to_video(teacher), "full").teacher()
    assert widened.family() is CONCAT
    assert widened.shape.in_channels == 33
    assert widened.null_prompt is teacher.null_prompt
    assert not widened.state["img_in.proj.weight"][:, 16:].any()


def test_only_full_training_widens_and_only_text_to_video_teachers(teacher: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="33 input channels"):
        SFTConfig(widen=True).prepared(teacher, "full")
    stated = replace(as_text_to_video(teacher), i2v_mode="token_replace")
    with pytest.raises(CheckpointError, match="token_replace"):
        SFTConfig(widen=True).prepared(stated, "full")
    with pytest.raises(ConfigError, match=r"patch embedding.*model\.mode=full"):
        SFTConfig(widen=True).prepared(as_text_to_video(teacher), "lora")


def test_guidance_needs_an_embedding(teacher: Checkpoint) -> None:
    prepared = CFGConfig().prepared(teacher, "full")
    assert prepared.shape.guidance_embed
    assert CFGConfig().prepared(prepared, "lora") is prepared
    with pytest.raises(ConfigError, match=r"guidance embedding.*model\.mode=full"):
        CFGConfig().prepared(teacher, "lora")


def test_the_exported_guidance_scale_must_be_in_the_trained_range(
    tmp_path: Path, tiny_config: Callable[..., dict]
) -> None:
    tree = tiny_config(tmp_path, method={"name": "cfg", "scale_max": 3.0})
    tree["model"]["negative_prompt"] = "none.safetensors"
    del tree["fake_optimizer"]
    with pytest.raises(ConfigError, match=r"model\.embedded_guidance .* found 6, 1 and 3"):
        parse_config(tree, "x.yaml")
    tree["model"]["embedded_guidance"] = 2.0
    assert parse_config(tree, "x.yaml").method.name == "cfg"


def test_the_learning_rate_rises_and_then_falls_linearly() -> None:
    settings = OptimizerConfig(lr=4.0, final_lr=2.0, warmup=2)
    rates = [settings.rate(update, update / 8) for update in range(8)]
    assert rates == [2.0, 3.75, 3.5, 3.25, 3.0, 2.75, 2.5, 2.25]
    assert OptimizerConfig(lr=4.0).rate(100, 1.0) == 4.0


def test_the_learning_rate_may_fall_only_at_the_end() -> None:
    settings = OptimizerConfig(lr=4.0, final_lr=2.0, decay=0.25)
    rates = [settings.rate(update, update / 8) for update in range(9)]
    assert rates == pytest.approx([4.0] * 7 + [3.0, 2.0])


def test_start_images_get_noise_of_the_configured_strength(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    def shown(noise: list[float] | None) -> torch.Tensor:
        tree = tiny_config(tmp_path, method={"name": "sft", "reference_noise": noise})
        del tree["fake_optimizer"]
        config = parse_config(tree, "x.yaml")
        networks = Networks(engines={}, generator_role=BASE, base=None)
        method = FineTuning(config.method, config, networks, Draws(0), torch.device("cpu"))
        return method.prepare_images(StartImage(torch.ones(3, 16, 1, 40, 40)), 5, [0, 1, 2]).latents

    assert torch.equal(shown(None), torch.ones(3, 16, 1, 40, 40))
    for spread in (0.0, 0.5):
        strengths = (shown([-2.0, spread]) - 1).flatten(1).std(dim=1)
        drawn = [Draws(0).each("reference level", 5, [p], lambda g: torch.randn((), generator=g)) for p in range(3)]
        torch.testing.assert_close(strengths, (-2.0 + spread * torch.cat(drawn)).exp(), rtol=0.03, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_resume_bit_exactly_and_their_exports_load(
    tmp_path: Path, teacher: Checkpoint, tiny_config: Callable[..., dict], train_runs: Callable[..., object]
) -> None:
    """Two updates, a resume and two more equal four updates: `sft` on a text-to-video teacher with EMA, and `cfg`."""
    narrow = as_text_to_video(teacher)
    recipe = Recipe(kind="teacher", i2v_mode="none", steps=28, shift=5.0, width=32, height=32, frames=5, fps=24)
    save_checkpoint(tmp_path / "t2v.safetensors", narrow.state, recipe, teacher.null_prompt)
    prompt = NullPrompt(torch.ones(1, 2, 16), torch.zeros(1, 768))
    save_file(null_prompt_tensors(prompt), tmp_path / "negative.safetensors")

    def configs(name: str, updates: int) -> list[dict]:
        made = []
        for method, model in (
            (
                {"name": "sft", "widen": True, "reference_noise": [-3.0, 0.5]},
                {"teacher": str(tmp_path / "t2v.safetensors")},
            ),
            ({"name": "cfg"}, {"negative_prompt": str(tmp_path / "negative.safetensors")}),
        ):
            config = tiny_config(tmp_path / name / method["name"], method=method, updates=updates)
            config["model"] |= model
            config["generator_ema"] = {"decay": 0.7}
            del config["fake_optimizer"]
            made.append(config)
        return made

    train_runs(1, [*configs("straight", 4), *configs("resumed", 2)])
    train_runs(1, configs("resumed", 4), "--resume")
    for method, start in (("sft", narrow), ("cfg", teacher)):
        straight, resumed = (
            load_checkpoint(tmp_path / name / method / "checkpoints" / "step-000004" / "generator.safetensors")
            for name in ("straight", "resumed")
        )
        assert all(torch.equal(straight.state[key], resumed.state[key]) for key in straight.state)
        assert straight.teacher().family() is CONCAT
        assert straight.recipe is not None
        assert (straight.recipe.kind, straight.recipe.method) == ("teacher", method)
        assert straight.shape.guidance_embed == (method == "cfg")
        assert not torch.equal(straight.state[TRAINED], start.state[TRAINED])
    widened = load_checkpoint(
        tmp_path / "straight" / "sft" / "checkpoints" / "step-000004" / "generator.safetensors"
    ).state["img_in.proj.weight"]
    assert widened[:, 16:].abs().max() > 0, "the new inputs are not trained"

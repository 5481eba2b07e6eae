"""LoRAs that are merged into the teacher before a training: the weights, the run, its files, and errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError, MagicDistillError
from magicdistill_core.hashes import file_sha256
from magicdistill_core.layouts.lora import lora_state
from magicdistill_core.lora_file import load_lora, save_lora
from tests.makers import branches, random_prompt
from train.config.reading import parse_config
from train.engines.teacher import load_teacher
from train.networks.weights import merge_lora, with_teacher_lora
from train.run.preflight import check_inputs
from train.run.trainer import train
from train.tools.export import export_run
from train.watch.report import write_report


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """A LoRA of another trainer: no recipe."""
    path = tmp_path / "style.safetensors"
    save_file(lora_state(branches(1), "transformer."), path)
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., dict], style: Path) -> Callable[..., dict]:
    def build(name: str, mode: str = "full", weight: float = 0.5, **model: object) -> dict:
        tree = tiny_config(tmp_path / name, updates=1)
        loras = [{"file": str(style), "weight": weight}]
        return tree | {"model": tree["model"] | {"mode": mode, "teacher_loras": loras, **model}}

    return build


def test_weights_are_the_teachers_plus_the_weighted_change(
    teacher_file: Path, style: Path, config: Callable[..., dict]
) -> None:
    plain, merged = load_checkpoint(teacher_file), load_teacher(parse_config(config("run"), "config")).checkpoint
    for key, weight in plain.state.items():
        branch = branches(1).get(key.removesuffix(".weight"))
        # alpha / rank is 2, the weight 0.5.
        expected = weight if branch is None else weight + branch.up @ branch.down
        torch.testing.assert_close(merged.state[key], expected, rtol=0, atol=1e-6)
    shapes = load_teacher(parse_config(config("run"), "config"), "meta").checkpoint.state
    assert {key: value.shape for key, value in shapes.items()} == {key: v.shape for key, v in plain.state.items()}
    assert all(value.is_meta for value in shapes.values())


def test_several_loras_add_up_and_the_last_prompt_counts(teacher_file: Path, style: Path, tmp_path: Path) -> None:
    plain = load_checkpoint(teacher_file)
    assert plain.recipe is not None
    recipe = plain.recipe.model_copy(update={"kind": "teacher_lora", "lora_rank": 4, "lora_alpha": 8.0})
    tuned, prompt = tmp_path / "tuned.safetensors", random_prompt(seed=5)
    save_lora(tuned, branches(2), recipe, prompt)
    both = with_teacher_lora(with_teacher_lora(plain, style, -1.0), tuned, 1.0)
    key = "single_blocks.0.linear2"
    first, second = branches(1)[key], branches(2)[key]
    expected = plain.state[f"{key}.weight"] - 2 * first.up @ first.down + 2 * second.up @ second.down
    torch.testing.assert_close(both.state[f"{key}.weight"], expected, rtol=0, atol=1e-5)
    assert both.null_prompt is not None
    assert torch.equal(both.null_prompt.text_states, prompt.text_states)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_equals_one_on_a_merged_file_and_its_files_name_the_lora(
    mode: str, teacher_file: Path, style: Path, config: Callable[..., dict], tmp_path: Path
) -> None:
    merged = with_teacher_lora(load_checkpoint(teacher_file), style, 0.5)
    file = tmp_path / "merged.safetensors"
    save_checkpoint(file, merged.state, merged.recipe, merged.null_prompt)
    train(parse_config(config("with", mode), "config"))
    train(parse_config(config("on_merged", mode, teacher=str(file), teacher_loras=[]), "config"))

    export_run(tmp_path / "with", tmp_path / "with.safetensors")
    export_run(tmp_path / "on_merged", tmp_path / "on_merged.safetensors")
    found, expected = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("with", "on_merged"))
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[key], expected.state[key]) for key in found.state)
    assert found.recipe is not None
    assert expected.recipe is not None
    (lora,) = found.recipe.teacher_loras
    assert (lora.name, lora.sha256, lora.weight) == ("style.safetensors", file_sha256(style), 0.5)
    assert found.recipe.teacher_hash == file_sha256(teacher_file)
    assert expected.recipe.teacher_loras == ()
    assert "teacher_loras" not in json.dumps(expected.recipe.to_metadata())
    assert "style.safetensors at 0.5" in write_report(tmp_path / "with").read_text()


def test_a_generator_lora_says_what_it_was_trained_with(
    teacher_file: Path, style: Path, config: Callable[..., dict], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(parse_config(config("run", "lora"), "config"))
    export_run(tmp_path / "run", tmp_path / "lora.safetensors", "lora")
    assert load_lora(tmp_path / "lora.safetensors", 128).recipe.teacher_loras[0].weight == 0.5  # type: ignore[union-attr]
    with_style = merge_lora(teacher_file, tmp_path / "lora.safetensors", [(style, 0.5)])
    assert "style.safetensors at 0.5" not in caplog.text
    without = merge_lora(teacher_file, tmp_path / "lora.safetensors")
    assert "style.safetensors at 0.5" in caplog.text
    key = "single_blocks.0.linear2.weight"
    branch = branches(1)[key.removesuffix(".weight")]
    difference = with_style.state[key] - without.state[key]
    torch.testing.assert_close(difference, branch.up @ branch.down, rtol=0, atol=1e-5)

    style.rename(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match=r"style.safetensors does not exist.*--format lora"):
        export_run(tmp_path / "run", tmp_path / "all.safetensors")


def test_a_run_resumes_only_with_its_loras(config: Callable[..., dict], style: Path, tmp_path: Path) -> None:
    train(parse_config(config("run"), "config"))
    check_inputs(parse_config(config("run"), "config"), resume=True)
    for changed in (config("run", weight=0.6), config("run", teacher_loras=[])):
        with pytest.raises(CheckpointError, match=r"other LoRAs in its teacher.*style.safetensors"):
            check_inputs(parse_config(changed, "config"), resume=True)
    style.rename(tmp_path / "moved.safetensors")
    moved = config("run", teacher_loras=[{"file": str(tmp_path / "moved.safetensors"), "weight": 0.5}])
    with pytest.raises(CheckpointError, match="other LoRAs"):
        check_inputs(parse_config(moved, "config"), resume=True)


def test_wrong_loras_are_refused_before_weights_are_loaded(
    teacher_file: Path, config: Callable[..., dict], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(kind: type[MagicDistillError], message: str, weight: object = 1.0) -> None:
        loras = [{"file": str(tmp_path / "wrong.safetensors"), "weight": weight}]
        with pytest.raises(kind, match=message):
            check_inputs(parse_config(config("run", teacher_loras=loras), "config"), resume=False)

    refused(ConfigError, r"model.teacher_loras.*wrong.safetensors, which does not exist")
    refused(ConfigError, "weight", float("inf"))
    refused(ConfigError, "weight", 40)
    wide = LowRank(torch.zeros(4, 256), torch.zeros(768, 4), alpha=8.0)
    save_file(lora_state({"double_blocks.0.img_attn_qkv": wide}), tmp_path / "wrong.safetensors")
    refused(CheckpointError, r"shape \[768, 256\], but the base model has shape \[384, 128\]")
    save_file(
        lora_state({"blocks.0.self_attn.q": LowRank(torch.zeros(4, 128), torch.zeros(128, 4), 8.0)}),
        tmp_path / "wrong.safetensors",
    )
    refused(CheckpointError, "Wan")
    recipe = load_checkpoint(teacher_file).recipe
    assert recipe is not None
    for kind in ("fake_lora", "generator_lora"):
        save_lora(tmp_path / "wrong.safetensors", branches(1), recipe.model_copy(update={"kind": kind}))
        refused(CheckpointError, rf"{kind}.*model.teacher_loras")
    extra = lora_state(branches(1)) | lora_state(
        {"text_model.layer": LowRank(torch.zeros(4, 8), torch.zeros(8, 4), 8.0)}
    )
    save_file(extra, tmp_path / "wrong.safetensors")
    loras = [{"file": str(tmp_path / "wrong.safetensors")}]
    check_inputs(parse_config(config("run", teacher_loras=loras), "config"), resume=False)
    assert "left out, because" in caplog.text

"""Samples of contenders: the recipe's settings, the same noise for all, and no effect of the batch."""

from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler
from tests.makers import random_prompt
from train.networks.network import load_network, network_velocity
from train.networks.weights import null_prompt_of
from train.pocket.measuring.contenders import (
    Contender,
    baselines_of,
    noise_seed,
    sample,
    sample_each,
    teacher_contenders,
    trained_contender,
)
from train.tools.extract_lora import extract_lora


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 16, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def with_recipe(teacher_file: Path, path: Path, **changes: object) -> Path:
    teacher = load_checkpoint(teacher_file)
    assert teacher.recipe is not None
    save_checkpoint(path, teacher.state, teacher.recipe.model_copy(update=changes), teacher.null_prompt)
    return path


def test_each_sample_has_its_own_noise_and_the_recipes_schedule(
    tmp_path: Path, teacher_file: Path, images: torch.Tensor
) -> None:
    file = with_recipe(teacher_file, tmp_path / "shifted.safetensors", shift=3.0)
    found = sample(Contender("", file, 2), images, [0, 7], batch=4)  # the second batch is not full
    assert found.shape == (3, 2, 16, 2, 4, 4)
    checkpoint = load_checkpoint(file)
    network, prompt = load_network(checkpoint), null_prompt_of(checkpoint)
    for clip in range(3):
        for place, seed in enumerate((0, 7)):
            generator = torch.Generator().manual_seed(noise_seed(clip, seed))
            noise = torch.randn(1, 16, 2, 4, 4, generator=generator)
            velocity = network_velocity(network, concat_condition(images[clip : clip + 1], 2), prompt)
            with torch.no_grad():
                expected = sample_euler(velocity, noise, few_step_sigmas(2, 3.0))[0]
            torch.testing.assert_close(found[clip, place], expected, rtol=1e-4, atol=1e-4)


def test_each_clip_has_its_own_prompt_and_noise(teacher_file: Path, images: torch.Tensor) -> None:
    checkpoint = load_checkpoint(teacher_file)
    assert checkpoint.recipe is not None
    prompts, seeds = [random_prompt(tokens, seed=tokens) for tokens in (3, 5, 1)], [11, 12, 13]
    found = sample_each(checkpoint, checkpoint.recipe, 2, images, prompts, seeds, batch=2)
    network = load_network(checkpoint)
    for clip, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        velocity = network_velocity(network, concat_condition(images[clip : clip + 1], 2), prompt)
        with torch.no_grad():
            expected = sample_euler(velocity, noise, few_step_sigmas(2, 5.0))[0]
        torch.testing.assert_close(found[clip], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_the_batch_changes_nothing(tmp_path: Path, teacher_file: Path, images: torch.Tensor, sampler: str) -> None:
    file = with_recipe(teacher_file, tmp_path / "file.safetensors", sampler=sampler)
    counted: list[int] = []
    one = sample(Contender("", file, 2), images, [0, 1], batch=1, advance=counted.append)
    torch.testing.assert_close(one, sample(Contender("", file, 2), images, [0, 1], batch=6), rtol=1e-4, atol=1e-4)
    assert sum(counted) == 6


def test_noise_differs_between_clips_and_seeds() -> None:
    assert len({noise_seed(clip, seed) for clip in range(20) for seed in range(20)}) == 400


def test_names_of_contenders(tmp_path: Path, teacher_file: Path) -> None:
    teachers = teacher_contenders(teacher_file, [28, 8, 4, 1])
    assert [contender.name for contender in teachers][::3] == ["teacher, 28 steps", "teacher, 1 step"]
    assert baselines_of(teachers) == ["teacher, 28 steps", "teacher, 4 steps"]
    assert baselines_of(teachers[1:2]) == ["teacher, 8 steps"]
    file = with_recipe(teacher_file, tmp_path / "a=b.safetensors", steps=1)
    assert trained_contender(str(file)) == Contender("a=b, 1 step", file, 1)
    assert trained_contender(f"mine={file}") == Contender("mine, 1 step", file, 1)
    with pytest.raises(ConfigError, match="with 0 steps"):
        teacher_contenders(teacher_file, [4, 0])


def test_a_lora_is_sampled_on_its_base(tmp_path: Path, teacher_file: Path, images: torch.Tensor) -> None:
    """A LoRA of full rank holds all changes of one matrix, so it samples the same as the changed model."""
    teacher = load_checkpoint(teacher_file)
    name = "single_blocks.0.linear2.weight"
    change = 0.05 * torch.randn(teacher.state[name].shape, generator=torch.Generator().manual_seed(0))
    changed, lora = tmp_path / "changed.safetensors", tmp_path / "lora.safetensors"
    assert teacher.recipe is not None
    recipe = teacher.recipe.model_copy(update={"kind": "generator", "steps": 2})
    state = teacher.state | {name: teacher.state[name].float() + change}
    save_checkpoint(changed, {key: tensor.float() for key, tensor in state.items()}, recipe, teacher.null_prompt)
    extract_lora(changed, teacher_file, lora, rank=512)
    contender = trained_contender(f"mine={lora}", teacher_file)
    assert contender == Contender("mine, 2 steps", lora, 2, teacher_file)
    expected = sample(Contender("", changed, 2), images, [0, 1])
    torch.testing.assert_close(sample(contender, images, [0, 1]), expected, rtol=1e-2, atol=1e-2)
    assert (sample(Contender("", teacher_file, 2), images, [0, 1]) - expected).abs().max() > 0.1

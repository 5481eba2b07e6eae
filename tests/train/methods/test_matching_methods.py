"""DMD2, one-step distillation and the generator's average: training, exact resumes, and refused settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_metadata, read_tensors
from tests.makers import metrics_of
from train.config.reading import parse_config
from train.engines.pair_generator import load_pair_generator
from train.methods.one_step import annealed

DISCRIMINATOR = {"optimizer": {"lr": 1e-3}, "weight": 0.5}
EMA = {"decay": 0.5, "start": 1, "on_cpu": True}


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def weights(run: Path, step: int) -> dict[str, Tensor]:
    files = sorted(checkpoint(run, step).rglob("*.safetensors"))
    return {f"{file.name}/{key}": value for file in files for key, value in read_tensors(file)[0].items()}


def recipe_of(file: Path) -> Recipe:
    recipe = Recipe.from_metadata(read_metadata(file), file.name)
    assert recipe is not None
    return recipe


def generator(run: Path, step: int) -> dict[str, Tensor]:
    return load_checkpoint(checkpoint(run, step) / "generator.safetensors").state


def dmd2(config: dict, updates: int, every: int) -> dict:
    method = {"name": "dmd2", "fake_updates": 1, "discriminator": DISCRIMINATOR}
    data = config["data"] | {"accumulation": 1}
    rest = {"checkpoint": {"every": every, "keep": 4}, "guard": {"action": "off"}}
    return config | rest | {"updates": updates, "method": method, "data": data}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mode", "precision", "stage"), [("full", "bf16", 2), ("lora", "fp32", 2), ("lora", "bf16", 1)]
)
def test_discriminator_and_average_resume_bit_exactly(
    tmp_path: Path, tiny_config: Callable[..., dict], live: Callable[..., Any], mode: str, precision: str, stage: int
) -> None:
    """Four rounds at once equal two, a new process, and two more: all states, the average, the metrics."""

    def config(name: str, updates: int) -> dict:
        tree = dmd2(tiny_config(tmp_path / name, generator_ema=EMA, zero={"stage": stage}), updates, every=2)
        tree["model"] |= {"mode": mode, "precision": precision, "activation_checkpointing": mode == "lora"}
        return tree

    for tree, flags in [(config("whole", 4), ()), (config("parts", 2), ()), (config("parts", 4), ("--resume",))]:
        done = live(tree, *flags)
        assert done.codes == [0], done.said[-4000:]
    expected, found = weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any("average" in key for key in expected)
    measured = metrics_of(tmp_path / "whole")
    assert measured == metrics_of(tmp_path / "parts")
    assert measured[0]["discriminator/loss"] != measured[-1]["discriminator/loss"]
    assert measured[-1]["generator/adversarial_gradient"] > 0


@pytest.mark.timeout(600)
def test_the_average_is_exported_and_changes_nothing_else(
    tmp_path: Path, tiny_config: Callable[..., dict], live: Callable[..., Any]
) -> None:
    runs = tmp_path / "plain", tmp_path / "averaged"
    for run, section in zip(runs, ({}, {"generator_ema": EMA}), strict=True):
        done = live(dmd2(tiny_config(run, **section), updates=3, every=1))
        assert done.codes == [0], done.said[-4000:]
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    average = None
    for step in range(1, 4):
        own, exported = (generator(run, step) for run in runs)
        # Of three updates one is averaged, the first: it keeps 2 / 11.
        kept = (
            0.0 if step <= EMA["start"] else min(EMA["decay"], (1 + step - EMA["start"]) / (10 + step - EMA["start"]))
        )
        average = own if average is None else {k: kept * average[k] + (1 - kept) * own[k] for k in own}
        assert all(torch.allclose(exported[key], average[key], rtol=1e-5, atol=1e-7) for key in own)
    assert any(not torch.equal(exported[key], own[key]) for key in own)


@pytest.mark.timeout(600)
def test_one_step_starts_from_the_few_step_generator_and_anneals(
    tmp_path: Path, tiny_config: Callable[..., dict], live: Callable[..., Any]
) -> None:
    few = tmp_path / "few"
    file = checkpoint(few, 1) / "generator.safetensors"
    one = tiny_config(
        tmp_path / "one",
        updates=3,
        schedule={"steps": 1},
        method={"name": "one_step", "fake_updates": 1, "few_step_generator": str(file)},
        generator_optimizer={"lr": 1e-6},
        checkpoint={"every": 1, "keep": 3},
        guard={"action": "off"},
    )
    few_config = tiny_config(few, updates=1, method={"name": "dmd", "fake_updates": 1}, guard={"action": "off"})
    # A high rate, so that the few-step generator is far from the teacher.
    for config in (few_config | {"generator_optimizer": {"lr": 1e-2}}, one):
        done = live(config)
        assert done.codes == [0], done.said[-4000:]
    few_step, teacher = generator(few, 1), load_checkpoint(one["model"]["teacher"]).state
    first = generator(tmp_path / "one", 1)
    distance = sum(float((first[key] - few_step[key]).norm()) for key in first)
    assert 0 < distance < 0.01 * sum(float((teacher[key] - few_step[key]).norm()) for key in first)
    measured = metrics_of(tmp_path / "one")
    assert [line["generator/pair_weight"] for line in measured] == [1.0, 0.625, 0.25]
    assert all(line["generator/pair_distance"] > 0 for line in measured)
    recipe = recipe_of(checkpoint(tmp_path / "one", 3) / "generator.safetensors")
    assert (recipe.method, recipe.steps, recipe.a_weak) == ("one_step", 1, 0.25)
    assert recipe_of(file).a_weak == 0

    few_checkpoint, few_recipe = load_pair_generator(file, load_checkpoint(one["model"]["teacher"]))
    assert few_recipe.steps == 4
    with pytest.raises(ConfigError, match="teacher of 28 steps"):
        load_pair_generator(Path(one["model"]["teacher"]), few_checkpoint)


def test_weights_are_annealed_linearly() -> None:
    assert [annealed((1.0, 0.25), done) for done in (0.0, 0.5, 1.0)] == [1.0, 0.625, 0.25]
    assert annealed((0.25, 1.0), 1.0) == 1.0


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"method": {"guidance_scale": 3.0}}, r"w2s .*model\.negative_prompt"),
        ({"method": {"name": "dmd", "a_weak": 0.25}}, r" method\.a_weak: .* 0"),
        ({"method": {"name": "dmd2"}}, r" method\.discriminator: .*required"),
        ({"method": {"name": "w2ss"}}, r"method\.name: .*w2ss"),
        ({"method": {"name": "one_step", "few_step_generator": "x"}}, r"schedule\.steps=1"),
        ({"fake_optimizer": None}, r"w2s .*fake_optimizer\.lr"),
        ({"method": {"guidance_scale": 0.5}}, "guidance_scale"),
    ],
)
def test_contradictory_settings_are_refused(
    tmp_path: Path, tiny_config: Callable[..., dict], sections: dict, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_config(tiny_config(tmp_path, **sections), "x.yaml")


def test_an_unused_negative_prompt_is_refused(
    tmp_path: Path, tiny_config: Callable[..., dict], negative_prompt: Path
) -> None:
    tree = tiny_config(tmp_path)
    tree["model"]["negative_prompt"] = str(negative_prompt)
    with pytest.raises(ConfigError, match=r"w2s .*model\.negative_prompt.*method\.guidance_scale"):
        parse_config(tree, "x.yaml")
    tree["method"]["guidance_scale"] = 3.0
    assert parse_config(tree, "x.yaml").method.uses_negative_prompt

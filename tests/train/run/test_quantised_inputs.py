"""Trainings whose teacher, or whose few-step generator, is an int8 file."""

from collections.abc import Callable
from pathlib import Path

import torch

from magicdistill_core.branch import merge
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.hashes import file_sha256
from magicdistill_core.lora_file import load_lora
from magicdistill_core.quantise import quantise_file
from train.config.reading import parse_config
from train.engines.teacher import load_teacher
from train.run_folder import GENERATOR_FILE, GENERATOR_LORA_FILE, checkpoint_folder
from train.tools.export import export_run


def test_a_lora_is_trained_on_an_int8_teacher_and_merged_into_it(
    tmp_path: Path, teacher_file: Path, tiny_config: Callable[..., dict], train_runs: Callable[..., None]
) -> None:
    file, run = tmp_path / "int8.safetensors", tmp_path / "run"
    quantise_file(teacher_file, file)
    tree = tiny_config(run)
    tree["model"] |= {"teacher": str(file), "mode": "lora"}
    config = parse_config(tree, "test")
    teacher, shapes = (load_teacher(config, device).checkpoint for device in ("cpu", "meta"))
    assert {key: value.shape for key, value in shapes.state.items()} == {k: v.shape for k, v in teacher.state.items()}
    train_runs(1, [tree])
    export_run(run, tmp_path / "merged.safetensors")
    made = load_checkpoint(tmp_path / "merged.safetensors")
    lora = load_lora(checkpoint_folder(run) / GENERATOR_LORA_FILE, made.shape.hidden)
    assert any(branch.up.abs().max() > 0 for branch in lora.branches.values())
    expected = merge(load_checkpoint(file).state, lora.branches, 1.0)
    assert made.state.keys() == expected.keys()
    assert all(torch.equal(made.state[key], expected[key]) for key in expected)
    assert made.recipe is not None
    assert made.recipe.teacher_hash == file_sha256(file)


def test_a_one_step_generator_learns_from_an_int8_generator(
    tmp_path: Path, teacher_file: Path, tiny_config: Callable[..., dict], train_runs: Callable[..., None]
) -> None:
    teacher = load_checkpoint(teacher_file)
    assert teacher.recipe is not None
    recipe = teacher.recipe.model_copy(update={"kind": "generator", "steps": 4})
    save_checkpoint(tmp_path / "plain.safetensors", teacher.state, recipe, teacher.null_prompt)
    quantise_file(tmp_path / "plain.safetensors", tmp_path / "int8.safetensors")
    method = {"name": "one_step", "few_step_generator": str(tmp_path / "int8.safetensors"), "fake_updates": 1}
    train_runs(1, [tiny_config(tmp_path / "run", method=method, schedule={"steps": 1}, updates=1)])
    made = load_checkpoint(checkpoint_folder(tmp_path / "run") / GENERATOR_FILE)
    assert made.recipe is not None
    assert (made.recipe.steps, made.recipe.method) == (1, "one_step")
    # One update of Adam changes no weight by more than the rate, so the run started from the rounded weights.
    start = load_checkpoint(tmp_path / "int8.safetensors")
    assert max(float((made.state[key] - start.state[key]).abs().max()) for key in start.state) < 2e-3
    assert any(not torch.equal(made.state[key], start.state[key]) for key in start.state)

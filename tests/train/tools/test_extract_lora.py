"""LoRAs extracted from two models: exact where the change has the rank, else as close as theory allows."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.branch import LowRank, merge
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError, OutputError
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.hashes import file_sha256
from magicdistill_core.lora_file import load_lora
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt
from train.data.dataset import LatentDataset
from train.networks.network import load_network, network_velocity
from train.networks.weights import merge_lora
from train.tools.extract_lora import extract_lora

QKV, OUT = "double_blocks.0.img_attn_qkv", "single_blocks.0.linear2"
CAPTIONS = {"turns left, speaks": random_prompt(4, seed=5)}


def branch(rows: int, columns: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
    return LowRank(down, up / 50, alpha=2.0 * rank)


def write(path: Path, state: dict[str, Tensor], recipe: Recipe | None) -> Path:
    assert recipe is not None
    save_checkpoint(path, state, recipe, random_prompt(seed=9), captions=CAPTIONS)
    return path


@pytest.fixture
def teacher(teacher_file: Path) -> Checkpoint:
    return load_checkpoint(teacher_file)


@pytest.fixture
def twice_tuned(tmp_path: Path, teacher: Checkpoint) -> Path:
    """The teacher with two LoRAs merged one after the other: one of rank 3, one of rank 2 on a part of its modules."""
    first = {QKV: branch(384, 128, 3, seed=1), OUT: branch(128, 640, 3, seed=2)}
    state = merge(merge(teacher.state, first, 1.0), {QKV: branch(384, 128, 2, seed=3)}, 1.0)
    assert teacher.recipe is not None
    return write(
        tmp_path / "tuned.safetensors", state, teacher.recipe.model_copy(update={"kind": "generator", "steps": 4})
    )


def test_two_stages_become_one_lora_on_the_first_teacher(tmp_path: Path, teacher_file: Path, twice_tuned: Path) -> None:
    out = tmp_path / "out" / "lora.safetensors"
    done = extract_lora(twice_tuned, teacher_file, out, rank=5)
    assert done.errors.keys() == {QKV, OUT}
    assert done.error < 1e-4
    assert (done.rank, done.left_out, done.left_out_share) == (5, [], 0)
    merged, tuned = merge_lora(teacher_file, out), load_checkpoint(twice_tuned)
    for key, weight in tuned.state.items():
        torch.testing.assert_close(merged.state[key], weight, atol=1e-5, rtol=0)
    assert merged.recipe == tuned.recipe
    assert merged.null_prompt is not None
    assert torch.equal(merged.null_prompt.text_states, random_prompt(seed=9).text_states)
    assert merged.captions.keys() == CAPTIONS.keys()
    recipe = load_lora(out, 128).recipe
    assert recipe is not None
    assert (recipe.kind, recipe.steps, recipe.base_hash) == ("generator_lora", 4, file_sha256(teacher_file))


def test_the_stated_error_is_that_of_the_singular_values_left_out(
    tmp_path: Path, teacher: Checkpoint, teacher_file: Path, twice_tuned: Path
) -> None:
    """Eckart and Young: the squared error of rank r is the sum of the other squared singular values."""
    done = extract_lora(twice_tuned, teacher_file, tmp_path / "lora.safetensors", rank=2)
    tuned, squares = load_checkpoint(twice_tuned).state, []
    for name in (QKV, OUT):
        change = (tuned[f"{name}.weight"] - teacher.state[f"{name}.weight"]).double()
        values = torch.linalg.eigvalsh(change @ change.T).flip(0)
        squares.append((float(values[2:].sum()), float(values.sum())))
        assert done.errors[name] == pytest.approx((squares[-1][0] / squares[-1][1]) ** 0.5, rel=1e-3)
    lost, total = (sum(column) for column in zip(*squares, strict=True))
    assert done.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert f"{done.error:.2%}" in done.summary()
    assert 0.05 < done.error < 0.9


def test_rounding_to_a_small_type_counts_as_error(tmp_path: Path, teacher_file: Path, twice_tuned: Path) -> None:
    done = extract_lora(twice_tuned, teacher_file, tmp_path / "lora.safetensors", rank=5, dtype=torch.bfloat16)
    assert {b.up.dtype for b in load_lora(tmp_path / "lora.safetensors", 128).branches.values()} == {torch.bfloat16}
    assert 1e-3 < done.error < 1e-2


def test_changes_outside_of_the_matrices_are_named(
    tmp_path: Path, teacher: Checkpoint, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = merge(teacher.state, {QKV: branch(384, 128, 2, seed=1)}, 1.0)
    change = (state[f"{QKV}.weight"] - teacher.state[f"{QKV}.weight"]).square().sum()
    state["final_layer.linear.bias"] = state["final_layer.linear.bias"] + 0.25
    added = 0.25**2 * len(state["final_layer.linear.bias"])
    tuned = write(tmp_path / "tuned.safetensors", state, teacher.recipe)
    with caplog.at_level(logging.WARNING):
        done = extract_lora(tuned, teacher_file, tmp_path / "lora.safetensors", rank=2)
    assert done.left_out == ["final_layer.linear.bias"]
    assert done.left_out_share == pytest.approx(added / (added + float(change)), rel=1e-4)
    assert "final_layer.linear.bias" in caplog.text


def test_models_that_do_not_fit_are_refused(
    tmp_path: Path, teacher: Checkpoint, teacher_file: Path, twice_tuned: Path
) -> None:
    out = tmp_path / "lora.safetensors"
    with pytest.raises(CheckpointError, match=r"No matrix in the blocks of teacher\.safetensors differs"):
        extract_lora(teacher_file, teacher_file, out, rank=2)
    other, plain = (tmp_path / f"{name}.safetensors" for name in ("other", "plain"))
    save_file(file_state(hunyuan_shape(single_blocks=2, refiner_blocks=2)), other)
    with pytest.raises(CheckpointError, match=r"no versions of one model: .* tensors differ.*single_blocks\.1"):
        extract_lora(twice_tuned, other, out, rank=2)
    save_file(load_checkpoint(twice_tuned).state, plain)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors has no recipe, expected that of a teacher"):
        extract_lora(plain, teacher_file, out, rank=2)
    broken = load_checkpoint(twice_tuned).state
    broken[f"{OUT}.weight"][0, 0] = torch.nan
    bad = write(tmp_path / "bad.safetensors", broken, teacher.recipe)
    with pytest.raises(CheckpointError, match=rf"{OUT}\.weight has values that are not finite numbers"):
        extract_lora(bad, teacher_file, out, rank=2)
    with pytest.raises(OutputError, match="is a folder"):
        extract_lora(twice_tuned, teacher_file, tmp_path, rank=2)
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        extract_lora(twice_tuned, teacher_file, tmp_path / "lora.pt", rank=2)
    assert not out.exists()


def test_an_energy_chooses_the_rank_of_each_matrix(
    tmp_path: Path, teacher: Checkpoint, teacher_file: Path, twice_tuned: Path
) -> None:
    """The smallest rank whose squared singular values are at least this share of all, computed with NumPy."""
    tuned = load_checkpoint(twice_tuned).state
    for energy in (0.3, 0.8, 0.95):
        extract_lora(twice_tuned, teacher_file, tmp_path / "lora.safetensors", energy=energy)
        for name, found in load_lora(tmp_path / "lora.safetensors", 128).branches.items():
            change = (tuned[f"{name}.weight"] - teacher.state[f"{name}.weight"]).double().numpy()
            squares = np.linalg.svd(change, compute_uv=False) ** 2
            shares = np.cumsum(squares) / squares.sum()
            assert found.rank == int(np.argmax(shares >= energy)) + 1
    # Everything: the rank of the change, and the rounding errors of its float32 values.
    assert extract_lora(twice_tuned, teacher_file, tmp_path / "all.safetensors", energy=1.0).error < 1e-5
    limited = extract_lora(twice_tuned, teacher_file, tmp_path / "limited.safetensors", 2, energy=0.999)
    assert limited.rank == 2
    for energy in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"energy is .* share"):
            extract_lora(twice_tuned, teacher_file, tmp_path / "no.safetensors", energy=energy)
    with pytest.raises(ConfigError, match="Neither a rank nor an energy"):
        extract_lora(twice_tuned, teacher_file, tmp_path / "no.safetensors")


def test_the_error_of_the_velocities_is_measured_and_stored(
    tmp_path: Path,
    teacher: Checkpoint,
    teacher_file: Path,
    twice_tuned: Path,
    dataset_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "lora.safetensors"
    with caplog.at_level(logging.WARNING):
        done = extract_lora(twice_tuned, teacher_file, out, rank=2, dataset=dataset_folder)
    recipe = load_lora(out, 128).recipe
    assert recipe is not None
    assert recipe.lora_error == pytest.approx(done.error, abs=1e-6)
    assert recipe.lora_velocity_error == done.velocity
    assert done.velocity is not None
    assert 0.05 < done.velocity < 1
    assert f"loses {100 * done.velocity:.0f} % of the change of the velocities" in caplog.text
    assert f"velocities is off by {done.velocity:.2%}" in done.summary()
    merged = merge_lora(teacher_file, out)
    assert merged.recipe is not None
    assert (merged.recipe.lora_error, merged.recipe.lora_velocity_error) == (None, None)

    # Computed anew, sample by sample, with the networks of the three files.
    tuned, data = load_checkpoint(twice_tuned), LatentDataset(dataset_folder)
    networks = {name: load_network(each) for name, each in {"tuned": tuned, "base": teacher, "lora": merged}.items()}
    prompt, noise = random_prompt(seed=9), torch.randn(4, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    squares = {"base": 0.0, "lora": 0.0}
    for number in range(4):
        latents = data.latents([number]).float()
        condition = CONCAT.condition(StartImage(latents[:, :, :1]), 2)
        for level in (1.0, 0.9375, 5 / 6, 0.625):
            sigma = torch.tensor([level])
            x = (1 - level) * latents + level * noise[number : number + 1]
            with torch.no_grad():
                found = {name: network_velocity(each, condition, prompt)(x, sigma) for name, each in networks.items()}
            for name in squares:
                squares[name] += float((found[name] - found["tuned"]).square().sum())
    assert done.velocity == pytest.approx((squares["lora"] / squares["base"]) ** 0.5, rel=1e-3)

    caplog.clear()
    exact = extract_lora(twice_tuned, teacher_file, out, rank=5, dataset=dataset_folder)
    assert exact.velocity is not None
    assert exact.velocity < 1e-3
    assert not caplog.text

"""The comparison of pocket models: which models it shows, with which noise, and what its pictures contain."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import frames_to_unit, unit_to_frames
from magicdistill_core.pocket.files import FOUR_STEP_LORA, ONE_STEP_LORA, TEACHER
from magicdistill_core.quantise import quantise_file
from magicdistill_core.recipe import Recipe
from train.data.vae import Vae, load_vae
from train.networks.network import load_network
from train.networks.sampling import generate
from train.networks.weights import null_prompt_of
from train.pocket import demo as demo_module
from train.pocket.comparison import Row, SampledRow, sample_row, write_comparison
from train.pocket.demo import comparison_rows, demo


@pytest.fixture(scope="module")
def vae(taehv_file: Path) -> Vae:
    return load_vae(taehv_file)


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def test_a_row_is_the_sample_of_its_file_at_its_steps(
    tmp_path: Path, teacher_file: Path, vae: Vae, start: Tensor
) -> None:
    """An int8 file is the network of the rounded weights."""
    quantise_file(teacher_file, tmp_path / "int8.safetensors")
    sampled = sample_row(Row("a", "b", tmp_path / "int8.safetensors", 2), vae, start, seed=3)
    checkpoint = load_checkpoint(tmp_path / "int8.safetensors")
    with torch.no_grad():
        image = StartImage(vae.encode_image(frames_to_unit(start[None])[:, 0]))
        network, prompt = load_network(checkpoint), null_prompt_of(checkpoint)
        latents = generate(network, prompt, image, 2, few_step_sigmas(2, 5.0), "euler", 3)
        expected = unit_to_frames(vae.decode(latents))
    assert torch.equal(sampled.clip, expected)
    assert (sampled.clip.shape, sampled.clip.dtype) == ((5, 32, 32, 3), torch.uint8)
    assert sampled.fact().startswith("b; 2 network calls, ")
    assert sampled.seconds > 0


def test_pictures_show_every_row_with_its_label(tmp_path: Path, start: Tensor) -> None:
    clips = [torch.full((3, 32, 32, 3), 40 * number, dtype=torch.uint8) for number in range(5)]
    for clip in clips:
        clip += torch.tensor([0, 15, 30], dtype=torch.uint8).reshape(3, 1, 1, 1)  # equal frames would be merged
    rows = [SampledRow(Row(f"row {n}", "", Path("x"), 1), clip, 0.5) for n, clip in enumerate(clips)]
    write_comparison(tmp_path / "a.png", tmp_path / "a.webp", start, rows, 12.0)
    cell = 160  # five times 32
    sheet = np.array(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (6 * (24 + cell + 4), 3 * (cell + 4) + 4, 3)
    for number, clip in enumerate(clips, start=1):
        middle = number * 188 + 24 + cell // 2
        assert [sheet[middle, 4 + 80 + 164 * t, 0] for t in range(3)] == clip[:, 0, 0, 0].tolist()
    with Image.open(tmp_path / "a.webp") as moving:
        assert (moving.n_frames, moving.size) == (3, (3 * 168, 2 * 188))
        for frame in (0, 2):
            moving.seek(frame)
            pixels = np.array(moving.convert("RGB")).astype(int)
            for place, clip in enumerate(clips, start=1):
                found = pixels[place // 3 * 188 + 24 + 80, place % 3 * 168 + 4 + 80, 0]
                assert abs(found - int(clip[frame, 0, 0, 0])) < 6
            # The start image stays for the complete clip.
            shown = pixels[24 : 24 + cell, 4 : 4 + cell].reshape(32, 5, 32, 5, 3).mean((1, 3))
            assert np.abs(shown - start.numpy()).mean() < 30


def recipe(kind: str, steps: int, updates: int) -> Recipe:
    fields = {"kind": kind, "steps": steps, "shift": 5.0, "width": 96, "height": 96, "frames": 17, "fps": 24.0}
    return Recipe.model_validate(fields | {"training_step": updates})


def test_the_demo_compares_five_models_at_the_steps_of_their_recipes() -> None:
    recipes = {
        TEACHER: recipe("teacher", 28, 9000),
        FOUR_STEP_LORA: recipe("generator_lora", 4, 70),
        ONE_STEP_LORA: recipe("generator_lora", 1, 300),
    }
    own = Path("generator.safetensors")
    rows = comparison_rows(recipes, own, 8, 95.4)
    assert [(row.label, row.file, row.steps) for row in rows] == [
        ("teacher, 28 steps", TEACHER, 28),
        ("teacher, 4 steps", TEACHER, 4),
        ("this run (8 updates), 4 steps", own, 4),
        ("shipped (70 updates), 4 steps", FOUR_STEP_LORA, 4),
        ("shipped (300 updates), 1 step", ONE_STEP_LORA, 1),
    ]
    assert "95 s" in rows[2].meaning


def test_a_missing_shipped_file_is_reported_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "FOUR_STEP_LORA", tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors does not exist"):
        demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()

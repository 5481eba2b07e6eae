"""Both pocket trainings at toy size: they learn, and a resumed run is the uninterrupted one, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.taehv import TAEHV, load_taehv
from train.data.dataset import LatentDataset
from train.pocket.dataset import PortraitFolder, RenderConfig, render_folder, to_unit_frames
from train.pocket.latents import write_latents
from train.pocket.run import RunError, ScheduleConfig
from train.pocket.teacher import TeacherConfig, train_teacher
from train.pocket.vae import (
    DecoderConfig,
    EncoderConfig,
    Sketcher,
    initialise,
    on_grid,
    psnr,
    start_sketcher,
    train_vae,
)

pytestmark = pytest.mark.slow

TINY: dict[str, object] = {"batch": 1, "crop": 32, "frames": 5, "held_out": 1, "warmup_steps": 1, "decay_steps": 1}


class StoppedError(Exception):
    """Stands for a killed process."""


def stop_at(count: int) -> Callable[[int, int, float], None]:
    """A progress callback that breaks off at the given step."""

    def progress(step: int, steps: int, loss: float) -> None:
        if step == count:
            raise StoppedError

    return progress


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    render_folder(RenderConfig(clips=4, frames=5, size=32), folder)
    return folder


@pytest.fixture(scope="module")
def vae_run(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run of both stages, with its file."""
    out = tmp_path_factory.mktemp("vae")
    encoder = EncoderConfig.model_validate({**TINY, "steps": 2, "normalise_clips": 2})
    train_vae(encoder, DecoderConfig.model_validate({**TINY, "steps": 3}), portraits, out / "run", out / "vae.st")
    return out


def test_the_linear_start_is_white_and_already_reconstructs(portraits: Path) -> None:
    """On the frames it was fitted to, before any training: exact normalisation, and far better than flat colours."""
    model = Sketcher()
    initialise(model, torch.Generator().manual_seed(0))
    folder = PortraitFolder(portraits)
    frames = to_unit_frames(torch.stack([folder.clip(number) for number in range(4)]))
    start_sketcher(model, frames)
    with torch.no_grad():
        latents = model.vae.encode(frames)
        made = model.sketch(latents)
    samples = latents.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(samples.mean(dim=0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(samples.T @ samples / len(samples), torch.eye(16), atol=2e-2, rtol=0)
    flat = frames.mean(dim=(1, 3, 4), keepdim=True).expand_as(frames)
    assert psnr(made, frames) > psnr(flat, frames) + 4


def test_vae_file_is_half_precision_in_the_layout(vae_run: Path) -> None:
    state = load_file(vae_run / "vae.st")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert state.keys() == TAEHV().state_dict().keys()
    load_taehv(vae_run / "vae.st")


def test_the_grid_is_exact_in_half_precision_and_rounds_by_half_a_step() -> None:
    weight = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 8).view(
        8, 1, 1, 1
    )
    rounded = on_grid(weight, 9)
    assert torch.equal(rounded.half().float(), rounded)
    assert torch.equal(on_grid(rounded, 9), rounded)
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert ((rounded - weight).abs() <= largest / 2**8).all()
    assert all(len(row.unique()) <= 2**9 + 1 for row in rounded)


def test_vae_latents_are_normalised(vae_run: Path, portraits: Path) -> None:
    vae, folder = load_taehv(vae_run / "vae.st"), PortraitFolder(portraits)
    with torch.no_grad():
        latents = vae.encode(to_unit_frames(torch.stack([folder.clip(number) for number in range(2)])))
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05


def test_vae_resumes_bit_exactly(vae_run: Path, portraits: Path, tmp_path: Path) -> None:
    encoder = EncoderConfig.model_validate({**TINY, "steps": 2, "normalise_clips": 2, "save_minutes": 1e-6})
    decoder = DecoderConfig.model_validate({**TINY, "steps": 3, "save_minutes": 1e-6})
    for stop in (1, 3):
        with pytest.raises(StoppedError):
            train_vae(encoder, decoder, portraits, tmp_path / "run", tmp_path / "vae.st", stop_at(stop))
    train_vae(encoder, decoder, portraits, tmp_path / "run", tmp_path / "vae.st")
    once, resumed = load_file(vae_run / "vae.st"), load_file(tmp_path / "vae.st")
    assert all(torch.equal(once[key], resumed[key]) for key in once)


@pytest.fixture(scope="module")
def latents(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, 3, first_seed=0, vae_file=vae_run / "vae.st")
    return folder


def test_several_processes_render_the_same_latents(vae_run: Path, latents: Path, tmp_path: Path) -> None:
    write_latents(tmp_path, 3, first_seed=0, vae_file=vae_run / "vae.st", processes=2)
    one, two = (LatentDataset(folder).batch(range(3)) for folder in (latents, tmp_path))
    assert torch.equal(one.latents, two.latents)


def tiny_teacher(**changes: object) -> TeacherConfig:
    sizes = {"steps": 3, "batch": 2, "double_blocks": 1, "single_blocks": 1, "sample_steps": 2, "samples": 1}
    return TeacherConfig.model_validate({**sizes, "warmup_steps": 1, "decay_steps": 1, **changes})


def test_teacher_resumes_bit_exactly_and_carries_its_recipe(vae_run: Path, latents: Path, tmp_path: Path) -> None:
    vae = vae_run / "vae.st"
    train_teacher(tiny_teacher(), latents, vae, tmp_path / "once", tmp_path / "once.safetensors")
    config = tiny_teacher(save_minutes=1e-6)
    with pytest.raises(StoppedError):
        train_teacher(config, latents, vae, tmp_path / "run", tmp_path / "two.safetensors", stop_at(2))
    train_teacher(config, latents, vae, tmp_path / "run", tmp_path / "two.safetensors")
    once, resumed = load_checkpoint(tmp_path / "once.safetensors"), load_checkpoint(tmp_path / "two.safetensors")
    assert all(torch.equal(once.state[key], resumed.state[key]) for key in once.state)
    assert once.recipe is not None
    assert (once.recipe.kind, once.recipe.shift, once.recipe.frames, once.recipe.width) == ("teacher", 5.0, 17, 96)
    assert once.null_prompt is not None
    assert once.shape.in_channels == 33


def test_another_setting_is_no_continuation(vae_run: Path, latents: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train_teacher(tiny_teacher(), latents, vae_run / "vae.st", tmp_path / "run", tmp_path / "t.st", stop_at(1))
    with pytest.raises(RunError, match="batch"):
        train_teacher(tiny_teacher(batch=3), latents, vae_run / "vae.st", tmp_path / "run", tmp_path / "t.st")


def test_learning_rate_rises_stays_and_falls() -> None:
    config = ScheduleConfig(steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:80] == [1.0] * 70
    assert rates[-1] == pytest.approx(0.05)
    assert rates[90] == pytest.approx(0.5)

"""Both pocket trainings at toy size: they learn, and a resumed run is bit-equal to an uninterrupted run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.taehv import TAEHV, load_taehv
from train.config.sections import EmaConfig, OptimizerConfig
from train.data.dataset import LatentDataset
from train.folder_lock import FolderInUseError, folder_lock
from train.pocket.dataset import PortraitFolder, RenderConfig, render_folder, to_unit_frames
from train.pocket.latents import write_latents
from train.pocket.sketcher import Sketcher, initialise, start_sketcher
from train.pocket.stage import DivergedError, StageConfig, train_stage
from train.pocket.teacher import (
    network_shape,
    null_prompt,
    teacher_config,
    visible_weights,
    write_untrained,
)
from train.pocket.vae import DecoderConfig, EncoderConfig, train_vae
from train.pocket.vae_file import on_grid
from train.pocket.vae_losses import psnr
from train.pocket.vae_tuning import TuningConfig, tune_vae
from train.watch.log import RunLog, read_lines

pytestmark = pytest.mark.slow

TINY: dict[str, object] = {"batch": 1, "crop": 32, "frames": 5, "held_out": 1, "checkpoint_every": 1}


class StoppedError(Exception):
    """Simulates a killed process."""


ENCODER = EncoderConfig.model_validate({**TINY, "updates": 2, "normalise_clips": 2})
DECODER = DecoderConfig.model_validate({**TINY, "updates": 3})


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    render_folder(RenderConfig(clips=4, frames=5, size=32), folder)
    return folder


@pytest.fixture(scope="module")
def vae_run(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run of both stages, with its exported file."""
    out = tmp_path_factory.mktemp("vae")
    train_vae(ENCODER, DECODER, portraits, out / "run", out / "vae.st")
    return out


def test_the_linear_start_is_normalised_and_reconstructs(portraits: Path) -> None:
    """Before training, on the fitted frames: latents are normalised, reconstructions far better than flat colours."""
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


def test_vae_resumes_bit_exactly(
    vae_run: Path, portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed in the second update of the encoder, and again in the second update of the decoder."""
    killed: set[Path] = set()
    log = RunLog.log

    def die_once(self: RunLog, step: int, metrics: dict[str, float], seconds: float) -> None:
        if step == 2 and self._run not in killed:
            killed.add(self._run)
            raise StoppedError
        log(self, step, metrics, seconds)

    monkeypatch.setattr(RunLog, "log", die_once)
    for _ in range(2):
        with pytest.raises(StoppedError):
            train_vae(ENCODER, DECODER, portraits, tmp_path / "run", tmp_path / "vae.st")
    train_vae(ENCODER, DECODER, portraits, tmp_path / "run", tmp_path / "vae.st")
    once, resumed = load_file(vae_run / "vae.st"), load_file(tmp_path / "vae.st")
    assert all(torch.equal(once[key], resumed[key]) for key in once)


def test_the_encoder_stays_as_the_decoder_knows_it(vae_run: Path, portraits: Path, tmp_path: Path) -> None:
    """The decoder may be trained further. The encoder may not, and two processes may not train in one folder."""
    shutil.copytree(vae_run / "run", tmp_path / "run")
    longer = ENCODER.model_copy(update={"updates": ENCODER.updates + 1})
    with pytest.raises(ConfigError, match=f"updates={ENCODER.updates}"):
        train_vae(longer, DECODER, portraits, tmp_path / "run", tmp_path / "vae.st")
    with folder_lock(tmp_path / "run", "another"), pytest.raises(FolderInUseError, match="another"):
        train_vae(ENCODER, DECODER, portraits, tmp_path / "run", tmp_path / "vae.st")
    longer_decoder = DECODER.model_copy(update={"updates": DECODER.updates + 1})
    train_vae(ENCODER, longer_decoder, portraits, tmp_path / "run", tmp_path / "vae.st")
    rows = read_lines(tmp_path / "run" / "decoder" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, DECODER.updates + 2))


def test_the_decoder_alone_is_tuned_and_existing_latents_stay_valid(
    vae_run: Path, portraits: Path, tmp_path: Path
) -> None:
    start = vae_run / "vae.st"
    for name, decoder_only in (("decoder", True), ("both", False)):
        config = TuningConfig.model_validate({**TINY, "updates": 2, "normalise_clips": 2, "decoder_only": decoder_only})
        tune_vae(config, start, portraits, tmp_path / name, tmp_path / f"{name}.st")
        before, after = load_file(start), load_file(tmp_path / f"{name}.st")
        changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == ({"decoder"} if decoder_only else {"encoder", "decoder"})


@pytest.fixture(scope="module")
def latents(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, 3, first_seed=0, vae_file=vae_run / "vae.st")
    return folder


def test_several_processes_render_the_same_latents(vae_run: Path, latents: Path, tmp_path: Path) -> None:
    write_latents(tmp_path, 3, first_seed=0, vae_file=vae_run / "vae.st", processes=2)
    one, two = (LatentDataset(folder).batch(range(3)) for folder in (latents, tmp_path))
    assert torch.equal(one.latents, two.latents)


class Line(nn.Module):
    """`y = a x`; a stage must learn a = 3."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))


def stage(**changes: object) -> StageConfig:
    optimizer = OptimizerConfig(lr=0.2, betas=(0.9, 0.99), final_lr=1e-3, clip=100.0)
    return StageConfig.model_validate(
        {
            "updates": 60,
            "optimizer": optimizer,
            "average": EmaConfig(decay=0.5),
            "checkpoint_every": 7,
            "validation_every": 1000,
        }
        | changes
    )


def run_line(folder: Path, settings: StageConfig, killed_at: int | None = None, broken_at: int | None = None) -> Line:
    network = Line()

    def loss(update: int) -> tuple[torch.Tensor, dict[str, float]]:
        if update == killed_at:
            raise StoppedError
        x = torch.randn(8, generator=torch.Generator().manual_seed(update))
        value = ((network.slope - 3) * x).square().mean()
        return (value * float("nan") if update == broken_at else value), {"slope": network.slope.item()}

    def validate(trained: Line, update: int) -> dict[str, float]:
        return {"error": abs(trained.slope.item() - 3)}

    return train_stage(folder, settings, network, loss, validate, ("slope",))


def test_a_stage_learns_and_ends_with_the_average(tmp_path: Path) -> None:
    trained = run_line(tmp_path, stage(updates=200))
    assert abs(float(trained.slope.detach()) - 3) < 0.05
    events = read_lines(tmp_path / "events.jsonl")
    assert [(event["event"], event["step"]) for event in events] == [("validated", 200)]
    assert events[0]["error"] == abs(trained.slope.item() - 3)
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 201))


def test_a_killed_stage_resumes_bit_exactly(tmp_path: Path) -> None:
    whole = run_line(tmp_path / "whole", stage())
    for killed_at in (10, 25):
        with pytest.raises(StoppedError):
            run_line(tmp_path / "killed", stage(), killed_at=killed_at)
    assert torch.equal(run_line(tmp_path / "killed", stage()).slope, whole.slope)
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_stage_resumes_only_with_its_own_settings(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_line(tmp_path, stage(), killed_at=20)
    with pytest.raises(ConfigError, match=r"seed.*differ|differ.*seed"):
        run_line(tmp_path, stage(seed=1))


def test_a_stage_may_become_longer_or_shorter(tmp_path: Path) -> None:
    """Also with other intervals; its latest checkpoint counts."""
    run_line(tmp_path, stage())
    run_line(tmp_path, stage(updates=70, checkpoint_every=4, validation_every=5))
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 71))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000070"
    slope = run_line(tmp_path, stage(updates=65)).slope
    assert torch.equal(slope, run_line(tmp_path, stage(updates=70)).slope)
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 71))


def test_a_loss_that_is_not_finite_ends_a_stage_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="update 11"):
        run_line(tmp_path, stage(), broken_at=10)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000007"


def test_the_teacher_starts_from_a_network_of_random_weights(latents: Path, tmp_path: Path) -> None:
    data, shape = LatentDataset(latents), network_shape(1, 1, 2)
    for name in ("one", "two"):
        write_untrained(tmp_path / name, shape, data, seed=3)
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one.shape == shape
    assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)
    assert torch.equal(one.null_prompt.text_states, null_prompt(3).text_states)
    assert (one.recipe.kind, one.recipe.width, one.recipe.frames) == ("teacher", data.width, data.frames)


def test_channels_that_change_the_picture_more_have_larger_weights() -> None:
    class Painter:
        """A decoder that shows only channels 0 and 3; channel 3 has twice the effect."""

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents[:, 0] + 2 * latents[:, 3]

    weights = visible_weights(Painter(), torch.zeros(1, 16, 2, 40, 40))
    assert weights[3] / weights[0] == pytest.approx(2, rel=0.1)
    assert sum(weights) == pytest.approx(16, abs=0.01)
    assert [weights[channel] for channel in range(16) if channel not in (0, 3)] == [0.0] * 14


def test_the_teacher_is_an_sft_run_with_weights_measured_for_its_vae(
    latents: Path, vae_run: Path, tmp_path: Path
) -> None:
    settings = ["updates=5", "method.uniform_levels=0.25"]
    config = teacher_config(tmp_path / "run", latents, vae_run / "vae.st", None, network_shape(1, 1, 1), settings)
    assert config.method.name == "sft"
    assert (config.updates, config.method.uniform_levels) == (5, 0.25)
    assert len(config.method.channel_weights) == 16
    assert min(config.method.channel_weights) < 1 < max(config.method.channel_weights)
    assert load_checkpoint(config.model.teacher).shape.single_blocks == 1
    begin = config.model.teacher
    later = teacher_config(tmp_path / "later", latents, vae_run / "vae.st", begin, network_shape(2, 1, 2), settings)
    assert later.model.teacher == begin


def test_the_teachers_command_trains_and_exports(latents: Path, vae_run: Path, tmp_path: Path) -> None:
    """The training writes a file with recipe and null prompt. A second call continues the run."""
    run, out = tmp_path / "run", tmp_path / "teacher.safetensors"
    command = [sys.executable, "-m", "train", "pocket", "train-teacher", f"--latents={latents}", "--clips=3"]
    command += [f"--vae={vae_run / 'vae.st'}", f"--run={run}", f"--out={out}", "--single-blocks=1", "updates=2"]
    for _ in range(2):
        done = subprocess.run([*command, "data.micro_batch=1", "validation.every=0"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    teacher = load_checkpoint(out)
    assert teacher.recipe is not None
    assert (teacher.recipe.kind, teacher.recipe.method, teacher.recipe.training_step) == ("teacher", "sft", 2)
    assert teacher.null_prompt is not None
    assert [event["event"] for event in read_lines(run / "events.jsonl")][-2:] == ["resumed", "finished"]

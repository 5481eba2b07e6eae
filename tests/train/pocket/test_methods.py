"""The comparison of methods: every method has a trial, and the measures are correct."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.pocket.files import GENERATOR, TEACHER, VAE
from magicdistill_core.pocket.render import portrait_clip
from train.config.reading import load_config
from train.data.dataset import LatentDataset
from train.data.vae import load_vae
from train.methods import _METHODS
from train.pocket import methods
from train.pocket.dataset import to_unit_frames
from train.pocket.evaluate import encode
from train.pocket.latents import FIRST_SEED, write_latents
from train.pocket.measures import HeldOut, distance_from_many_steps, held_out_loss, unexplained_guidance
from train.pocket.methods import PRESETS, TRIALS, Trial


@pytest.fixture(scope="module")
def held() -> HeldOut:
    clips = torch.randn(4, 16, 2, 4, 4, generator=torch.Generator().manual_seed(99))
    return HeldOut(load_checkpoint(TEACHER), clips[:2, :, :1], clips[:2], clips[2:], (0,))


def test_every_method_is_tried_with_its_own_preset() -> None:
    tried = {load_config(PRESETS / f"{trial.preset}.yaml", []).method.name for trial in TRIALS.values()}
    assert tried == {config.model_fields["name"].default for config in _METHODS}


def test_measures_of_the_teacher_itself(held: HeldOut) -> None:
    assert distance_from_many_steps(held, held.teacher, 28) == 0
    assert distance_from_many_steps(held, held.teacher, 4) > 0.01
    assert unexplained_guidance(held, held.teacher, 28) == pytest.approx(1)


def test_held_out_loss_is_that_of_the_velocity(held: HeldOut) -> None:
    zero = {key: torch.zeros_like(value) for key, value in held.teacher.state.items()}
    # A network of zeros predicts zero, so its loss is the mean square of the target: noise plus clips.
    expected = 1 + float(held.clips.square().mean())
    assert held_out_loss(held, replace(held.teacher, state=zero), 28) == pytest.approx(expected, rel=0.05)


def test_a_widened_teacher_does_not_see_its_image(held: HeldOut) -> None:
    start = TRIALS["widen"].start
    assert start is not None
    widened = start(held.teacher)
    other = replace(held, images=held.images + 1)
    assert held_out_loss(held, widened, 28) == held_out_loss(other, widened, 28)
    assert held_out_loss(held, held.teacher, 28) != held_out_loss(other, held.teacher, 28)


def test_results_are_written_after_every_trial_and_kept(
    held: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps_of(held: HeldOut, checkpoint: Checkpoint, steps: int) -> float:
        return float(checkpoint.source == GENERATOR.name)

    monkeypatch.setattr(methods, "hold_out", lambda clips, seeds, fast: held)
    monkeypatch.setattr(methods, "run_trial", lambda name, trial, dataset, runs: GENERATOR)
    monkeypatch.setattr(methods, "TRIALS", {name: Trial("pocket_w2s", steps_of) for name in ("one", "two")})
    out = tmp_path / "out.json"
    methods.compare_methods(["one"], tmp_path, tmp_path / "runs", out, 2, 1, lambda text: None)
    table = methods.compare_methods(["two"], tmp_path, tmp_path / "runs", out, 2, 1, lambda text: None)
    results = json.loads(out.read_text())["results"]
    assert results.keys() == {"one", "two"}
    assert (results["one"]["before"], results["one"]["after"]) == (0, 1)
    assert table.count("| steps of |") == 2
    text_to_video = load_checkpoint(tmp_path / "runs" / "text_to_video.safetensors")
    assert text_to_video.family().takes_image is False


@pytest.mark.slow
def test_the_output_of_a_failed_command_is_in_the_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "nothing.safetensors")
    with pytest.raises(MagicDistillError, match=r"magicdistill train .* failed:"):
        methods.run_trial("w2s", TRIALS["w2s"], tmp_path / "no dataset", tmp_path / "runs")


def test_faster_portraits_are_every_third_frame_of_longer_ones(tmp_path: Path) -> None:
    write_latents(tmp_path, 1, stride=3)
    data = LatentDataset(tmp_path)
    clip = portrait_clip(FIRST_SEED, 49)[::3]
    expected = encode(load_vae(VAE), to_unit_frames(clip[None]))
    assert data.fps == 8
    assert (data.latents([0]) - expected).abs().max() < 0.01 * expected.abs().max()  # kept in float16

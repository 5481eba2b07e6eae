"""Methods that make no few-step generator: each has a trial, and results are kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.pocket.render import portrait_clip
from train.config.reading import load_config
from train.data.dataset import LatentDataset
from train.data.vae import load_vae
from train.pocket import methods
from train.pocket.dataset import to_unit_frames
from train.pocket.latents import FIRST_SEED, write_latents
from train.pocket.measuring.held_out import encode
from train.pocket.measuring.velocity_errors import HeldOutClips, held_out_loss
from train.pocket.methods import PRESETS, TRIALS, Trial


@pytest.fixture
def held() -> HeldOutClips:
    clips = torch.randn(4, 16, 2, 4, 4, generator=torch.Generator().manual_seed(99))
    return HeldOutClips(load_checkpoint(TEACHER), clips)


def test_the_methods_without_a_few_step_generator_have_trials() -> None:
    assert {load_config(PRESETS / f"{trial.preset}.yaml", []).method.name for trial in TRIALS.values()} == {
        "cfg",
        "sft",
    }


def test_a_widened_teacher_does_not_see_its_image(held: HeldOutClips) -> None:
    start = TRIALS["widen"].start
    assert start is not None
    widened = start(held.teacher)
    # The last frame tells the two kinds of networks apart: both hold the same noise and the same target there.
    assert torch.equal(seen_image(held, widened), torch.zeros(4))
    assert (seen_image(held, held.teacher) != 0).all()


def seen_image(held: HeldOutClips, checkpoint: Checkpoint) -> torch.Tensor:
    """The change of the loss when another image is shown with the same clips."""
    shown = [held.images, held.images + 1]
    losses = []
    for image in shown:
        other = type("Shown", (HeldOutClips,), {"images": image})(held.teacher, held.clips)
        losses.append(held_out_loss(other, checkpoint))
    return losses[1] - losses[0]


def test_results_are_written_after_every_trial_and_kept(
    held: HeldOutClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tmp_path / "trained.safetensors"
    trained.symlink_to(TEACHER)

    def name_of(held: HeldOutClips, checkpoint: Checkpoint) -> torch.Tensor:
        return torch.tensor([1.0, 2.0]) + float(checkpoint.source == trained.name)

    monkeypatch.setattr(methods, "held_out_of", lambda clips, fast: held)
    monkeypatch.setattr(methods, "run_trial", lambda name, trial, dataset, runs: trained)
    monkeypatch.setattr(methods, "TRIALS", {name: Trial("pocket_w2s", name_of) for name in ("one", "two")})
    out = tmp_path / "out.json"
    methods.compare_methods(["one"], tmp_path, tmp_path / "runs", out, 2, lambda text: None)
    table = methods.compare_methods(["two"], tmp_path, tmp_path / "runs", out, 2, lambda text: None)
    results = json.loads(out.read_text())["results"]
    assert results.keys() == {"one", "two"}
    assert (results["one"]["before"]["mean"], results["one"]["after"]["mean"]) == (1.5, 2.5)
    # Both clips change equally, so the difference is certain although the clips differ.
    assert results["one"]["difference"] == {"mean": 1, "low": 1, "high": 1}
    assert table.count("| name of |") == 2
    assert "1.0000 [1.0000, 1.0000]" in table
    text_to_video = load_checkpoint(tmp_path / "runs" / "text_to_video.safetensors")
    assert text_to_video.family().takes_image is False


@pytest.mark.slow
def test_the_output_of_a_failed_command_is_in_the_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "nothing.safetensors")
    with pytest.raises(MagicDistillError, match=r"magicdistill train .* failed:"):
        methods.run_trial("sft", TRIALS["sft"], tmp_path / "no dataset", tmp_path / "runs")


def test_faster_portraits_are_every_third_frame_of_longer_ones(tmp_path: Path) -> None:
    write_latents(tmp_path, 1, stride=3)
    data = LatentDataset(tmp_path)
    clip = portrait_clip(FIRST_SEED, 49)[::3]
    expected = encode(load_vae(VAE), to_unit_frames(clip[None]))
    assert data.fps == 8
    assert (data.latents([0]) - expected).abs().max() < 0.01 * expected.abs().max()  # kept in float16

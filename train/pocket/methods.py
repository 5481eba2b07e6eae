"""Compare the training methods on the pocket model: run each preset and measure the method's own goal.

The measures use held-out portraits and noise that no run has seen. Each method has a measure that fits its goal:

- distribution matching: the distance of few-step samples from data;
- consistency distillation: the distance of few-step samples from the teacher's many-step samples;
- guidance distillation: the error of the guided velocity;
- fine-tuning: the flow-matching loss.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.widening import widen_to_image

from ..data.vae import load_vae
from .dataset import held_out_clips, to_unit_frames
from .evaluate import encode
from .latents import frames_needed, write_latents
from .measures import (
    HeldOut,
    Measure,
    distance_from_data,
    distance_from_many_steps,
    held_out_loss,
    recipe_of,
    unexplained_guidance,
)

PRESETS = Path(__file__).parents[1] / "presets"
_PATCH_EMBED = "img_in.proj.weight"
# Fine-tuning needs data that is new to the teacher: every third frame of longer clips, so that portraits move faster.
_STRIDE, _FAST_CLIPS = 3, 128


@dataclass(frozen=True)
class Trial:
    """A preset and its measure. Lower is better for every measure.

    Attributes:
        preset: file name in `train/presets`, without its suffix.
        measure: the measure, computed for the model before and after training.
        settings: settings that override the preset. `{runs}` is the folder of all runs.
        start: computes the model before training from the teacher. None if it is the teacher itself.
        fast: whether data and held-out clips are portraits that move faster than the teacher's training data.
    """

    preset: str
    measure: Measure
    settings: tuple[str, ...] = ()
    start: Callable[[Checkpoint], Checkpoint] | None = None
    fast: bool = False


def without_image(teacher: Checkpoint) -> dict[str, Tensor]:
    """Return the teacher's weights with the image and mask inputs removed: a text-to-video network."""
    return {**teacher.state, _PATCH_EMBED: teacher.state[_PATCH_EMBED][:, :LATENT_CHANNELS].contiguous()}


def _widened(teacher: Checkpoint) -> Checkpoint:
    """Return that text-to-video network widened to image-to-video, as `method.widen` does."""
    state = widen_to_image(without_image(teacher), teacher.source)
    assert state[_PATCH_EMBED].shape[1] == CONCAT_CHANNELS
    return Checkpoint(state, teacher.shape, teacher.recipe, teacher.null_prompt, "widened")


TRIALS: Mapping[str, Trial] = {
    "w2s": Trial("pocket_w2s", distance_from_data),
    "dmd": Trial("pocket_dmd", distance_from_data),
    "dmd2": Trial("pocket_dmd2", distance_from_data),
    "supervised": Trial("pocket_supervised", distance_from_data),
    "one_step": Trial("pocket_one_step", distance_from_data, ("method.few_step_generator={runs}/w2s.safetensors",)),
    "lcm": Trial("pocket_lcm", distance_from_many_steps),
    "cfg": Trial("pocket_cfg", unexplained_guidance),
    "sft": Trial("pocket_sft", held_out_loss, fast=True),
    "widen": Trial(
        "pocket_sft", held_out_loss, ("method.widen=true", "model.teacher={runs}/text_to_video.safetensors"), _widened
    ),
}


def hold_out(clips: int, seeds: int, fast: bool = False) -> HeldOut:
    """Render and encode held-out start images with their clips, and as many clips of other people as data.

    Args:
        clips: number of start images.
        seeds: number of noise seeds; they are 0, 1, 2 and so on.
        fast: whether the portraits move faster, as in `Trial`.
    """
    stride = _STRIDE if fast else 1
    frames = held_out_clips(2 * clips, frames_needed(stride))[:, ::stride]
    latents = encode(load_vae(VAE), to_unit_frames(frames))
    mine = latents[:clips]
    return HeldOut(load_checkpoint(TEACHER), mine[:, :, :1], mine, latents[clips:], tuple(range(seeds)))


def run_trial(name: str, trial: Trial, dataset: Path, runs: Path) -> Path:
    """Train a preset or resume its run, export it, and return the exported file.

    Args:
        name: name of the trial, used for the run's folder and the exported file.
        trial: the preset and its settings.
        dataset: the folder of encoded portraits.
        runs: folder for the run and the exported file. An exported file that exists already is returned at once.

    Raises:
        MagicDistillError: if a command fails. The message contains the end of its output.
    """
    out = runs / f"{name}.safetensors"
    if out.exists():
        return out
    settings = [f"run={runs / name}", f"data.dataset={dataset}", *(s.format(runs=runs) for s in trial.settings)]
    resume = ["--resume"] if (runs / name / "checkpoints" / "latest").exists() else []
    _command("train", str(PRESETS / f"{trial.preset}.yaml"), *settings, *resume)
    _command("export", str(runs / name), "--out", str(out))
    return out


def _command(*arguments: str) -> None:
    # Paths in the presets are relative to the root of the repository.
    command = [sys.executable, "-m", __name__.partition(".")[0], *arguments]
    done = subprocess.run(command, cwd=PRESETS.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()[-20:]
        raise MagicDistillError(f"magicdistill {' '.join(arguments)} failed:\n" + "\n".join(output))


def compare_methods(
    names: list[str], dataset: Path, runs: Path, out: Path, clips: int, seeds: int, say: Callable[[str], None]
) -> str:
    """Run the trials and measure each before and after training. Write JSON to `out` and return a Markdown table.

    Results are written after every trial. Results of other trials in `out` are kept.

    Args:
        names: the trials to run, see `TRIALS`.
        dataset: the folder of encoded portraits.
        runs: folder for the runs and the exported files.
        out: JSON file to write.
        clips: number of held-out start images. The data has the same number of clips.
        seeds: number of noise seeds.
        say: called with a line of text before each stage.

    Raises:
        MagicDistillError: as `run_trial`.
    """
    dataset, runs = dataset.resolve(), runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    held_by_speed = {fast: hold_out(clips, seeds, fast) for fast in {TRIALS[name].fast for name in names}}
    teacher = load_checkpoint(TEACHER)
    text_to_video = runs / "text_to_video.safetensors"
    if not text_to_video.exists():
        recipe = recipe_of(teacher).model_copy(update={"i2v_mode": "none"})
        save_checkpoint(text_to_video, without_image(teacher), recipe, teacher.null_prompt)
    results = json.loads(out.read_text())["results"] if out.exists() else {}
    for name in names:
        trial = TRIALS[name]
        held, data = held_by_speed[trial.fast], dataset
        if trial.fast:
            data = runs / "fast_portraits"
            write_latents(data, _FAST_CLIPS, stride=_STRIDE)
        say(f"{name}: training")
        trained = load_checkpoint(run_trial(name, trial, data, runs))
        say(f"{name}: measuring")
        steps = recipe_of(trained).steps
        start = trial.start(teacher) if trial.start is not None else teacher
        before, after = (trial.measure(held, checkpoint, steps) for checkpoint in (start, trained))
        results[name] = {
            "preset": trial.preset,
            "updates": recipe_of(trained).training_step,
            "steps": steps,
            "measure": trial.measure.__name__,
            "before": before,
            "after": after,
        }
        record = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "clips": clips,
            "seeds": seeds,
            "results": results,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    return table(results)


def table(results: Mapping[str, dict]) -> str:
    """Return the results as a Markdown table.

    Args:
        results: for each trial the values that `compare_methods` writes to its JSON file.
    """
    lines = ["| method | updates | steps | measure | before | after |", "|---" * 6 + "|"]
    for name, row in results.items():
        measure = row["measure"].replace("_", " ")
        lines.append(
            f"| {name} | {row['updates']} | {row['steps']} | {measure} | {row['before']:.4f} | {row['after']:.4f} |"
        )
    return "\n".join(lines)

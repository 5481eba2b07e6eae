"""Every training method on the pocket model: its preset as it is, and what the run did to the method's own measure.

A method is held to what it is for, on held-out portraits and noise that no run has seen: distribution matching to the
distance of its few-step samples from data, consistency distillation to their distance from the teacher's many steps,
guidance distillation to the guided velocity, fine-tuning to the flow-matching loss.
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
    Held,
    Measure,
    distance_from_data,
    distance_from_many_steps,
    held_out_loss,
    recipe_of,
    unexplained_guidance,
)

PRESETS = Path(__file__).parents[1] / "presets"
_PATCH_EMBED = "img_in.proj.weight"
# What the teacher has not seen, for fine-tuning: every third frame of longer clips, so that portraits move faster.
_STRIDE, _FAST_CLIPS = 3, 128


@dataclass(frozen=True)
class Trial:
    """A preset, and what it is held to; lower is better for every measure.

    Attributes:
        preset: in `train/presets`, without its suffix.
        measure: of the start and of what was trained.
        settings: overrides, with `{runs}` for the folder of all runs.
        start: makes what the generator starts from, if it is not the teacher as it is.
        fast: whether data and held-out clips are portraits that move faster than those the teacher knows.
    """

    preset: str
    measure: Measure
    settings: tuple[str, ...] = ()
    start: Callable[[Checkpoint], Checkpoint] | None = None
    fast: bool = False


def without_image(teacher: Checkpoint) -> dict[str, Tensor]:
    """The teacher robbed of its image and mask inputs: a text-to-video network."""
    return {**teacher.state, _PATCH_EMBED: teacher.state[_PATCH_EMBED][:, :LATENT_CHANNELS].contiguous()}


def _widened(teacher: Checkpoint) -> Checkpoint:
    """What `method.widen` makes of that network."""
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


def hold_out(clips: int, seeds: int, fast: bool = False) -> Held:
    """`clips` held-out start images with their clips, and as many of other people as data."""
    stride = _STRIDE if fast else 1
    frames = held_out_clips(2 * clips, frames_needed(stride))[:, ::stride]
    latents = encode(load_vae(VAE), to_unit_frames(frames))
    mine = latents[:clips]
    return Held(load_checkpoint(TEACHER), mine[:, :, :1], mine, latents[clips:], tuple(range(seeds)))


def run_trial(name: str, trial: Trial, dataset: Path, runs: Path) -> Path:
    """Train a preset, or go on with its run, and export it; the exported file.

    Raises:
        MagicDistillError: if a command fails; what it said is in the message.
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
    # Presets name files of the repository by their place in it.
    command = [sys.executable, "-m", __name__.partition(".")[0], *arguments]
    done = subprocess.run(command, cwd=PRESETS.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-20:]
        raise MagicDistillError(f"magicdistill {' '.join(arguments)} failed:\n" + "\n".join(said))


def compare_methods(
    names: list[str], dataset: Path, runs: Path, out: Path, clips: int, seeds: int, say: Callable[[str], None]
) -> str:
    """Run the trials and measure each before and after; writes JSON to `out`, returns a Markdown table.

    Results are written after every trial, and trials that `out` already holds are kept.

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
        made = load_checkpoint(run_trial(name, trial, data, runs))
        say(f"{name}: measuring")
        steps = recipe_of(made).steps
        start = trial.start(teacher) if trial.start is not None else teacher
        before, after = (trial.measure(held, checkpoint, steps) for checkpoint in (start, made))
        results[name] = {
            "preset": trial.preset,
            "updates": recipe_of(made).training_step,
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
    """The results as a Markdown table."""
    lines = ["| method | updates | steps | measure | before | after |", "|---" * 6 + "|"]
    for name, row in results.items():
        measure = row["measure"].replace("_", " ")
        lines.append(
            f"| {name} | {row['updates']} | {row['steps']} | {measure} | {row['before']:.4f} | {row['after']:.4f} |"
        )
    return "\n".join(lines)

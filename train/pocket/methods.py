"""Run the presets of the methods that make no few-step generator, and measure each method's own goal.

The measures use held-out portraits and noise that no run has seen:

- guidance distillation (`cfg`): the error of the guided velocity;
- fine-tuning (`sft`), also of a widened text-to-video network: the flow-matching loss.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.widening import widen_to_image

from ..data.vae import load_vae
from ..distributed import available_device
from .dataset import held_out_clips, to_unit_frames
from .latents import frames_needed, write_latents
from .measuring.comparison import compare, shown_interval
from .measuring.held_out import encode
from .measuring.velocity_errors import HeldOutClips, Measure, held_out_loss, recipe_of, unexplained_guidance

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
    "cfg": Trial("pocket_cfg", unexplained_guidance),
    "sft": Trial("pocket_sft", held_out_loss, fast=True),
    "widen": Trial(
        "pocket_sft", held_out_loss, ("method.widen=true", "model.teacher={runs}/text_to_video.safetensors"), _widened
    ),
}


def held_out_of(clips: int, fast: bool = False) -> HeldOutClips:
    """Render and encode held-out clips.

    Args:
        clips: number of clips.
        fast: whether the portraits move faster, as in `Trial`.
    """
    stride = _STRIDE if fast else 1
    frames = held_out_clips(clips, frames_needed(stride))[:, ::stride]
    vae = load_vae(VAE, available_device())
    return HeldOutClips(load_checkpoint(TEACHER), encode(vae, to_unit_frames(frames)))


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
    names: list[str], dataset: Path, runs: Path, out: Path, clips: int, say: Callable[[str], None]
) -> str:
    """Run the trials and measure each before and after training. Write JSON to `out` and return a Markdown table.

    Results are written after every trial. Results of other trials in `out` are kept.

    Args:
        names: the trials to run, see `TRIALS`.
        dataset: the folder of encoded portraits.
        runs: folder for the runs and the exported files.
        out: JSON file to write.
        clips: number of held-out clips, at least 2.
        say: called with a line of text before each stage.

    Raises:
        MagicDistillError: as `run_trial`.
    """
    dataset, runs = dataset.resolve(), runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    held_by_speed = {fast: held_out_of(clips, fast) for fast in {TRIALS[name].fast for name in names}}
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
        start = trial.start(teacher) if trial.start is not None else teacher
        before, after = (trial.measure(held, checkpoint) for checkpoint in (start, trained))
        change = compare({"before": before, "after": after}, ["before"])
        results[name] = {
            "preset": trial.preset,
            "updates": recipe_of(trained).training_step,
            "measure": trial.measure.__name__,
            "before": asdict(change["before"].value),
            "after": asdict(change["after"].value),
            "difference": asdict(change["after"].differences["before"]),
        }
        record = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "clips": clips,
            "results": results,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    return table(results)


def table(results: Mapping[str, dict]) -> str:
    """Return the results as a Markdown table of means over clips with 95 % intervals.

    Args:
        results: for each trial the values that `compare_methods` writes to its JSON file.
    """
    lines = ["| method | updates | measure | before | after | difference |", "|---" * 6 + "|"]
    for name, row in results.items():
        measure = row["measure"].replace("_", " ")
        values = [shown_interval(Interval(**row[key])) for key in ("before", "after", "difference")]
        lines.append(f"| {name} | {row['updates']} | {measure} | {' | '.join(values)} |")
    return "\n".join(lines)

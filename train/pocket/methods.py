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
from functools import cached_property
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, load_null_prompt, save_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS, LATENT_CHANNELS, concat_condition
from magicdistill_core.flow import Velocity, add_noise, shift_sigma
from magicdistill_core.metrics.clips import latent_statistics
from magicdistill_core.metrics.distances import frechet_distance
from magicdistill_core.objectives.flow_matching import flow_matching_loss
from magicdistill_core.objectives.guidance import guided_velocity
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.recipe import Recipe
from magicdistill_core.widening import widen_to_image

from ..network import load_network, network_velocity
from ..vae import load_vae
from ..weights import null_prompt_of
from .dataset import held_out_clips, to_unit_frames
from .evaluate import encode, sample_set

PRESETS = Path(__file__).parents[1] / "presets"
NEGATIVE_PROMPT = PRESETS / "pocket_negative_prompt.safetensors"
_TEACHER_STEPS = 28
_LEVELS = 8
_SCALES = (1.5, 2.0, 3.0)
_PATCH_EMBED = "img_in.proj.weight"


@dataclass(frozen=True)
class Held:
    """Held-out portraits, the teacher's own samples of them, and the noise seeds to sample with."""

    teacher: Checkpoint
    images: Tensor  # [N, 16, 1, H, W]
    clips: Tensor  # [N, 16, T, H, W], of these images
    data: Tensor  # [N, 16, T, H, W], of other people
    seeds: tuple[int, ...]

    @cached_property
    def by_many_steps(self) -> dict[int, Tensor]:
        """The teacher's samples at 28 steps, by seed."""
        return {seed: self.sample(self.teacher, _TEACHER_STEPS, seed) for seed in self.seeds}

    def sample(self, checkpoint: Checkpoint, steps: int, seed: int) -> Tensor:
        """Samples `[N, 16, T, H, W]` of a checkpoint, with the shift and sampler of its recipe."""
        return sample_set(checkpoint, _recipe(checkpoint), steps, self.images, self.clips.shape[2], seed)


Measure = Callable[[Held, Checkpoint, int], float]


def distance_from_data(held: Held, checkpoint: Checkpoint, steps: int) -> float:
    """Frechet distance of the samples' latent statistics from other people's, as `pocket evaluate` has it."""
    data = latent_statistics(held.data)
    return mean(frechet_distance(latent_statistics(held.sample(checkpoint, steps, seed)), data) for seed in held.seeds)


def distance_from_many_steps(held: Held, checkpoint: Checkpoint, steps: int) -> float:
    """Mean squared distance of the samples from the teacher's 28 steps from the same noise."""
    return mean(
        float((held.sample(checkpoint, steps, seed) - held.by_many_steps[seed]).square().mean()) for seed in held.seeds
    )


@torch.no_grad()
def held_out_loss(held: Held, checkpoint: Checkpoint, steps: int) -> float:
    """Flow-matching loss on the held-out clips, at fixed levels and noise."""
    velocity = _velocity(held, checkpoint, null_prompt_of(checkpoint))
    return mean(float(flow_matching_loss(velocity, held.clips, *draw)) for draw in _draws(held))


@torch.no_grad()
def unexplained_guidance(held: Held, checkpoint: Checkpoint, steps: int) -> float:
    """Share of the guided teacher's difference from the plain one that the network, told the scale, does not make."""
    prompt = null_prompt_of(held.teacher)
    plain = _velocity(held, held.teacher, prompt)
    negative = _velocity(held, held.teacher, load_null_prompt(NEGATIVE_PROMPT))
    left = whole = 0.0
    for scale in _SCALES:
        student = _velocity(held, checkpoint, prompt, scale)
        for eps, sigma in _draws(held):
            x = add_noise(held.clips, eps, sigma)
            unguided = plain(x, sigma)
            target = guided_velocity(unguided, negative(x, sigma), scale)
            left += float((student(x, sigma) - target).square().mean())
            whole += float((unguided - target).square().mean())
    return left / whole


def _velocity(held: Held, checkpoint: Checkpoint, prompt: NullPrompt, guidance: float = 1.0) -> Velocity:
    condition = concat_condition(held.images, held.clips.shape[2])
    return network_velocity(load_network(checkpoint), condition, prompt, guidance)


def _draws(held: Held) -> list[tuple[Tensor, Tensor]]:
    """Noise and levels, spread evenly before the shift."""
    count = len(held.clips)
    shift = _recipe(held.teacher).shift
    draws = []
    for number in range(_LEVELS):
        noise = torch.randn(held.clips.shape, generator=torch.Generator().manual_seed(number))
        level = torch.full((count,), (number + 0.5) / _LEVELS)
        draws.append((noise, shift_sigma(level, shift)))
    return draws


def _recipe(checkpoint: Checkpoint) -> Recipe:
    assert checkpoint.recipe is not None
    return checkpoint.recipe


@dataclass(frozen=True)
class Trial:
    """A preset, and what it is held to; lower is better for every measure.

    Attributes:
        preset: in `train/presets`, without its suffix.
        measure: of the start and of what was trained.
        settings: overrides, with `{runs}` for the folder of all runs.
        start: makes what the generator starts from, if it is not the teacher as it is.
    """

    preset: str
    measure: Measure
    settings: tuple[str, ...] = ()
    start: Callable[[Checkpoint], Checkpoint] | None = None


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
    "sft": Trial("pocket_sft", held_out_loss),
    "widen": Trial(
        "pocket_sft", held_out_loss, ("method.widen=true", "model.teacher={runs}/text_to_video.safetensors"), _widened
    ),
}


def hold_out(clips: int, seeds: int) -> Held:
    """`clips` held-out start images with their clips, and as many of other people as data."""
    latents = encode(load_vae(VAE), to_unit_frames(held_out_clips(2 * clips)))
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
    command = [sys.executable, "-m", "train", *arguments]
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
    held = hold_out(clips, seeds)
    text_to_video = runs / "text_to_video.safetensors"
    if not text_to_video.exists():
        recipe = _recipe(held.teacher).model_copy(update={"i2v_mode": "none"})
        save_checkpoint(text_to_video, without_image(held.teacher), recipe, held.teacher.null_prompt)
    results = json.loads(out.read_text())["results"] if out.exists() else {}
    for name in names:
        trial = TRIALS[name]
        say(f"{name}: training")
        made = load_checkpoint(run_trial(name, trial, dataset, runs))
        say(f"{name}: measuring")
        steps = _recipe(made).steps
        start = trial.start(held.teacher) if trial.start is not None else held.teacher
        before, after = (trial.measure(held, checkpoint, steps) for checkpoint in (start, made))
        results[name] = {
            "preset": trial.preset,
            "updates": _recipe(made).training_step,
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

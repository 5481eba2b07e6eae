"""How near are samples to data? Generators compared on held-out pocket portraits with the same noise.

Every number is named by its features: the Frechet distance is of simple statistics of the pocket VAE's latents, not
FID; the energy distance is of whole latents relative to their start image, so that it sees motion and not identity.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.metrics.clips import latent_statistics, motion, sharpness
from magicdistill_core.metrics.distances import energy_distance, frechet_distance
from magicdistill_core.pocket.files import VAE
from magicdistill_core.recipe import Recipe

from ..data.vae import Vae, load_vae
from ..networks.network import load_network, network_velocity
from ..networks.sampling import sample_latents
from ..networks.weights import null_prompt_of
from .dataset import held_out_clips, to_unit_frames

MEASURES = ("frechet", "energy", "motion", "sharpness")
_BATCH = 16
# Decoding costs more than sampling; motion and sharpness are means that need no more clips than this.
_DECODED = 16


@dataclass(frozen=True)
class Contender:
    """A checkpoint at a number of steps."""

    name: str
    file: Path
    steps: int


@torch.no_grad()
def encode(vae: Vae, frames: Tensor) -> Tensor:
    """Latents `[N, 16, T, H, W]` of clips `[N, T, 3, H, W]` in [0, 1], in bf16 arithmetic."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([vae.encode(clip) for clip in frames.split(1)]).float()


@torch.no_grad()
def _decode(vae: Vae, latents: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([vae.decode(clip) for clip in latents.split(1)]).float()


def load_contender(contender: Contender) -> tuple[Checkpoint, Recipe]:
    """A contender's weights, and the recipe that says for which shift and sampler they were made.

    Raises:
        CheckpointError: if the file is unusable or carries no recipe.
    """
    checkpoint = load_checkpoint(contender.file)
    if checkpoint.recipe is None:
        raise CheckpointError(
            f"{checkpoint.source} ({contender.name}) carries no recipe, so the shift it was made for is unknown and "
            f"its samples would not be comparable. Compare files that `magicdistill export` or `magicdistill pocket "
            f"train-teacher` wrote."
        )
    return checkpoint, checkpoint.recipe


@torch.no_grad()
def sample_set(
    checkpoint: Checkpoint, recipe: Recipe, steps: int, image_latents: Tensor, frames: int, seed: int
) -> Tensor:
    """One sample `[16, T, H, W]` for each start image, with noise that depends on seed and place only."""
    prompt = null_prompt_of(checkpoint)
    network = load_network(checkpoint)
    conditions = concat_condition(image_latents, frames).split(_BATCH)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        parts = zip(conditions, x.split(_BATCH), sigma.split(_BATCH), strict=True)
        return torch.cat([network_velocity(network, c, prompt)(x_part, s) for c, x_part, s in parts])

    shape = (len(image_latents), LATENT_CHANNELS, frames, *image_latents.shape[3:])
    return sample_latents(velocity, shape, few_step_sigmas(steps, recipe.shift), recipe.sampler, seed, "cpu")


def _measure(latents: Tensor, frames: Tensor, data: Tensor, data_frames: Tensor) -> dict[str, float]:
    def motion_part(x: Tensor) -> Tensor:
        return (x[:, :, 1:] - x[:, :, :1]).flatten(1)

    return {
        "frechet": frechet_distance(latent_statistics(latents), latent_statistics(data)),
        "energy": energy_distance(motion_part(latents), motion_part(data)),
        "motion": float(motion(frames).mean() / motion(data_frames).mean()),
        "sharpness": float(sharpness(frames).mean() / sharpness(data_frames).mean()),
    }


def evaluate(
    contenders: list[Contender],
    clips: int,
    seeds: list[int],
    out: Path,
    advance: Callable[[], None] = lambda: None,
) -> str:
    """Measure contenders against held-out portraits; writes JSON to `out`, returns a Markdown table.

    Half of the held-out portraits give the start images, the other half is the data to which all are compared; the row
    `data` compares the two halves and is the best that can be reached with so many clips.

    Args:
        clips: start images, and as many clips of data.
        seeds: noise seeds; the table gives mean and deviation over them.
        advance: called after each of the `len(contenders) * len(seeds)` sample sets.

    Raises:
        CheckpointError: before anything is sampled, if a file is unusable or carries no recipe.
    """
    loaded = [load_contender(contender) for contender in contenders]
    vae = load_vae(VAE)
    frames = to_unit_frames(held_out_clips(2 * clips))
    latents = encode(vae, frames)
    looked_at = min(clips, _DECODED)
    # Data, too, is looked at through the autoencoder: what it blurs is not the generator's fault.
    decoded = _decode(vae, torch.cat([latents[:looked_at], latents[clips : clips + looked_at]]))
    reference, reference_frames = latents[clips:], decoded[looked_at:]
    rows: dict[str, list[dict[str, float]]] = {
        "data": [_measure(latents[:clips], decoded[:looked_at], reference, reference_frames[:looked_at])]
    }
    for contender, (checkpoint, recipe) in zip(contenders, loaded, strict=True):
        for seed in seeds:
            made = sample_set(checkpoint, recipe, contender.steps, latents[:clips, :, :1], latents.shape[2], seed)
            result = _measure(made, _decode(vae, made[:looked_at]), reference, reference_frames[:looked_at])
            rows.setdefault(contender.name, []).append(result)
            advance()
    record = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "clips": clips,
        "seeds": seeds,
        "measures": {
            "frechet": "Frechet distance of per-channel latent mean, deviation and change",
            "energy": "energy distance of latents minus their first frame",
            "motion": "mean change between frames, as a ratio to data",
            "sharpness": "mean absolute Laplacian of frames, as a ratio to data",
        },
        "results": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    return table(rows)


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """The results as a Markdown table: mean +- deviation over seeds."""
    lines = ["| | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for measure in MEASURES:
            values = [run[measure] for run in runs]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

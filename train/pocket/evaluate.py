"""Measure the distance of samples from data: compare models on held-out pocket portraits with the same noise.

The Frechet distance uses simple statistics of the pocket VAE's latents; it is not FID. The energy distance uses full
latents minus their first frame, so it measures motion and not identity. A *recipe* is the sampling settings (shift,
sampler) that a model file stores.
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
# Decoding costs more than sampling. Motion and sharpness are means, for which these clips are sufficient.
_DECODED = 16


@dataclass(frozen=True)
class Contender:
    """A model file with a number of sampling steps.

    Attributes:
        name: name of the row in the table.
        file: the model file of a complete transformer.
        steps: number of sampling steps, instead of the recipe's.
    """

    name: str
    file: Path
    steps: int


@torch.no_grad()
def encode(vae: Vae, frames: Tensor) -> Tensor:
    """Encode clips `[N, T, 3, H, W]` in [0, 1] to latents `[N, 16, t, h, w]` in bf16 arithmetic."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([vae.encode(clip) for clip in frames.split(1)]).float()


@torch.no_grad()
def _decode(vae: Vae, latents: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([vae.decode(clip) for clip in latents.split(1)]).float()


def load_contender(contender: Contender) -> tuple[Checkpoint, Recipe]:
    """Load a contender's weights, and the recipe with their shift and sampler.

    Args:
        contender: the model file and its name.

    Returns:
        The weights and the recipe.

    Raises:
        CheckpointError: if the file is unusable or has no recipe.
    """
    checkpoint = load_checkpoint(contender.file)
    if checkpoint.recipe is None:
        raise CheckpointError(
            f"{checkpoint.source} ({contender.name}) carries no recipe, so its shift is unknown and its samples would "
            f"not be comparable. Choose a file that `magicdistill export` or `magicdistill pocket train-teacher` wrote."
        )
    return checkpoint, checkpoint.recipe


@torch.no_grad()
def sample_set(
    checkpoint: Checkpoint, recipe: Recipe, steps: int, image_latents: Tensor, frames: int, seed: int
) -> Tensor:
    """Sample `[N, 16, T, H, W]`, one clip per start image. The noise depends only on the seed and the clip number.

    Args:
        checkpoint: the model, of the family HunyuanVideo concat.
        recipe: shift and sampler.
        steps: sampling steps.
        image_latents: latents of the start images, `[N, 16, 1, H, W]`.
        frames: latent frames T.
        seed: seed of the noise.
    """
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
    """Compare contenders with held-out portraits. Write JSON to `out` and return a Markdown table.

    The start images come from one half of the held-out portraits. The other half is the data for all comparisons. The
    row `data` compares the two halves: it is the distance between clips of the same kind, at this number of clips.

    Args:
        contenders: model files with their steps.
        clips: number of start images. The data has the same number of clips.
        seeds: noise seeds. The table shows mean and standard deviation over them.
        out: JSON file to write.
        advance: called after each of the `len(contenders) * len(seeds)` sample sets.

    Raises:
        CheckpointError: before sampling, if a file is unusable or has no recipe.
    """
    loaded = [load_contender(contender) for contender in contenders]
    vae = load_vae(VAE)
    frames = to_unit_frames(held_out_clips(2 * clips))
    latents = encode(vae, frames)
    count = min(clips, _DECODED)
    # The data is decoded from latents too, so that blur of the autoencoder does not count against the models.
    decoded = _decode(vae, torch.cat([latents[:count], latents[clips : clips + count]]))
    reference, reference_frames = latents[clips:], decoded[count:]
    rows: dict[str, list[dict[str, float]]] = {
        "data": [_measure(latents[:clips], decoded[:count], reference, reference_frames[:count])]
    }
    for contender, (checkpoint, recipe) in zip(contenders, loaded, strict=True):
        for seed in seeds:
            samples = sample_set(checkpoint, recipe, contender.steps, latents[:clips, :, :1], latents.shape[2], seed)
            result = _measure(samples, _decode(vae, samples[:count]), reference, reference_frames[:count])
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
    """Return the results as a Markdown table: mean ± standard deviation over seeds.

    Args:
        rows: for each contender one dictionary per seed with the values of `MEASURES`.
    """
    lines = ["| | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for measure in MEASURES:
            values = [run[measure] for run in runs]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

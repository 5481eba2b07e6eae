"""Measure how often clips of a model do what their captions say: the command `check-captions`.

Each clip continues the start image of another held-out person, so the clips are independent. The reader reads yaw,
mouth and eyelids from the decoded frames. Renders of the same people that follow the same captions, seen through the
VAE, have a row of their own: their errors are those of the reader and of the thresholds, so no model can be expected to
be better.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.captions import find_caption
from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.pocket.files import READER, TEACHER, VAE
from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE
from magicdistill_core.pocket.vocabulary import DIRECTIONS, WORDS, caption_of
from magicdistill_core.recipe import Recipe

from ..data.vae import Vae, load_vae
from ..distributed import available_device
from ..networks.weights import load_weights_on
from .dataset import HELD_OUT_SEED, render_clips, to_unit_frames
from .measuring.comparison import markdown_table, shown_interval
from .measuring.contenders import noise_seed, sample_each
from .measuring.directions import Thresholds, cues_of, fit_thresholds, read_directions
from .measuring.held_out import decode, encode
from .measuring.obeyed import WHOLE, Obeyed, obeyed
from .measuring.reader.calibration import CALIBRATION_SEED
from .measuring.reader.reading import Reader, load_reader
from .progress import Progress, adding, no_progress

RENDERED = "rendered (ceiling)"
# People that no other measure uses: one range for the thresholds, another for the clips that are judged.
_FIRST_FOR_THRESHOLDS = CALIBRATION_SEED + 200_000
_FIRST_SEED = HELD_OUT_SEED + 200_000


@dataclass(frozen=True)
class CaptionedModel:
    """A model that carries all captions of the vocabulary.

    Attributes:
        name: name of the row.
        file: the model file, or the LoRA.
        checkpoint: the complete weights.
        recipe: their recipe.
        prompts: the text conditioning in the file, by direction.
    """

    name: str
    file: Path
    checkpoint: Checkpoint
    recipe: Recipe
    prompts: Mapping[Direction, NullPrompt]


def load_captioned(name: str, file: Path, base: Path = TEACHER) -> CaptionedModel:
    """Load a model with its captions.

    Args:
        name: name of the row.
        file: a complete model file, or a LoRA.
        base: the model file that a LoRA belongs to.

    Raises:
        CheckpointError: if a file is unusable, has no recipe, or lacks a caption of the vocabulary.
    """
    checkpoint = load_weights_on(file, base)
    if checkpoint.recipe is None:
        raise CheckpointError(
            f"{file} carries no recipe, so its number of steps is unknown. Use a file that `magicdistill export` wrote."
        )
    prompts = {
        direction: find_caption(checkpoint.captions, caption_of(direction), file.name) for direction in DIRECTIONS
    }
    return CaptionedModel(name, file, checkpoint, checkpoint.recipe, prompts)


def check_captions(
    models: Sequence[CaptionedModel],
    clips: int,
    out: Path,
    vae_file: Path = VAE,
    reader_file: Path = READER,
    processes: int = 1,
    progress: Progress = no_progress,
) -> str:
    """Measure models on held-out start images. Write JSON to `out` and return Markdown tables.

    Args:
        models: the models, with different names.
        clips: number of start images for each caption.
        out: JSON file to write. It has the caption of every clip, and what was seen in it.
        vae_file: the video autoencoder of the latents.
        reader_file: the reader of portraits.
        processes: number of processes that render.
        progress: shows the progress of each part of the work.

    Raises:
        ConfigError: if two models have the same name.
        ReaderError: if the reader is missing or is no reader.
    """
    names = [RENDERED, *(model.name for model in models)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two rows would have the name {', '.join(twice)}. Give each model its own name (NAME=FILE).")
    reader = load_reader(reader_file)
    vae = load_vae(vae_file, available_device())
    told = [direction for direction in DIRECTIONS for _ in range(clips)]
    # Seen, not true: a threshold on true values would call the reader's errors motion.
    chosen = _motion(reader, vae, _rendered(vae, _FIRST_FOR_THRESHOLDS, told, processes, progress, "Thresholds"))
    thresholds = fit_thresholds(cues_of(chosen), told)
    latents = _rendered(vae, _FIRST_SEED, told, processes, progress, "Held-out portraits")
    seen = {RENDERED: _seen(reader, vae, latents, thresholds)}
    # The encoder is causal, so latent 0 of a clip is its first frame encoded as a still image.
    images = latents[:, :, :1]
    for model in models:
        with progress(model.name) as advance:
            made = sample_each(
                model.checkpoint,
                model.recipe,
                model.recipe.steps,
                images,
                [model.prompts[direction] for direction in told],
                [noise_seed(number, 0) for number in range(len(told))],
                advance=adding(advance, len(told)),
            )
        seen[model.name] = _seen(reader, vae, made, thresholds)
    found = {name: obeyed(told, directions) for name, directions in seen.items()}
    facts = {
        "machine": f"{platform.machine()}, {available_device().type}, torch {torch.__version__}",
        "clips_per_caption": clips,
        "vae_sha256": weights_sha256(vae_file),
        "thresholds": asdict(thresholds),
        "models": {m.name: {"sha256": weights_sha256(m.file), "steps": m.recipe.steps} for m in models},
        "shares": {name: asdict(of) for name, of in found.items()},
        "told": [caption_of(direction) for direction in told],
        "seen": {name: [caption_of(direction) for direction in directions] for name, directions in seen.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")
    return tables(found)


def _rendered(
    vae: Vae, first_seed: int, told: Sequence[Direction], processes: int, progress: Progress, title: str
) -> Tensor:
    """Return the latents of people who do what they are told, one person for each direction: `[N, 16, t, h, w]`."""
    seeds = range(first_seed, first_seed + len(told))
    found = []
    with progress(title) as advance:
        add = adding(advance, len(told))
        for clip in render_clips(seeds, DEFAULT_FRAMES, DEFAULT_SIZE, processes, directions=told):
            found.append(encode(vae, to_unit_frames(clip[None])))
            add(1)
    return torch.cat(found)


def _motion(reader: Reader, vae: Vae, latents: Tensor) -> Tensor:
    """Return the motion that the reader sees, `[N, T, 7]`. Few frames are in memory at a time."""
    return torch.cat([reader.read(decode(vae, part)).motion for part in latents.split(8)])


def _seen(reader: Reader, vae: Vae, latents: Tensor, thresholds: Thresholds) -> list[Direction]:
    return read_directions(cues_of(_motion(reader, vae, latents)), thresholds)


def tables(found: Mapping[str, Obeyed]) -> str:
    """Return the shares of clips that do what they were told as Markdown tables, with 95 % intervals.

    Args:
        found: the shares of each row.
    """
    words = [word for said in WORDS.values() for word in said.values()]
    return "\n\n".join(
        (
            _table([*WORDS, WHOLE], {name: of.attributes for name, of in found.items()}),
            _table(words, {name: of.words for name, of in found.items()}),
        )
    )


def _table(columns: Sequence[str], shares: Mapping[str, Mapping[str, Interval]]) -> str:
    lines = [[name, *(shown_interval(of[column]) for column in columns)] for name, of in shares.items()]
    return markdown_table(["", *columns], lines)

"""Compare pocket models by eye: the same start image and the same noise, as a picture and as a moving picture."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import frames_to_unit, latent_frames, unit_to_frames
from magicdistill_core.media.contact_sheet import contact_sheet
from magicdistill_core.media.video_writing import WEBP, write_video
from magicdistill_core.pocket.files import TEACHER

from ..data.vae import Vae
from ..networks.network import load_network
from ..networks.sampling import generate
from ..networks.weights import load_weights_on, null_prompt_of
from ..tools.sample import resolve_settings

_SHEET_COLUMNS = 9
_MOVING_COLUMNS = 3


@dataclass(frozen=True)
class Row:
    """A model of the comparison.

    Attributes:
        label: its label in the pictures; a label of up to 30 letters fits above a moving clip.
        meaning: what it shows, as a sentence without a full stop.
        file: its model file, or a LoRA on the shipped teacher, with a recipe and a null prompt.
        steps: number of network calls for a clip.
    """

    label: str
    meaning: str
    file: Path
    steps: int


@dataclass(frozen=True)
class SampledRow:
    """A row with its clip.

    Attributes:
        row: the model.
        clip: its clip, uint8 `[T, H, W, 3]`.
        seconds: the time of the network calls, without loading and decoding.
    """

    row: Row
    clip: Tensor
    seconds: float

    def fact(self) -> str:
        """Return what the row shows, the number of network calls and their time."""
        calls = "1 network call" if self.row.steps == 1 else f"{self.row.steps} network calls"
        return f"{self.row.meaning}; {calls}, {self.seconds:.1f} s"


@torch.no_grad()
def sample_row(row: Row, vae: Vae, start: Tensor, seed: int = 0) -> SampledRow:
    """Sample the clip of a row. Equal seeds are equal noise for all rows.

    Args:
        row: the model.
        vae: the autoencoder of its latents.
        start: the start image, uint8 `[H, W, 3]`.
        seed: seed of the noise.

    Raises:
        CheckpointError: if the file is missing or damaged, or has no recipe or no null prompt.
    """
    checkpoint = load_weights_on(row.file, TEACHER)
    settings = resolve_settings(checkpoint.recipe, checkpoint.source, seed, row.steps)
    network, prompt = load_network(checkpoint), null_prompt_of(checkpoint)
    image = StartImage(vae.encode_image(frames_to_unit(start[None])[:, 0]))
    sigmas = few_step_sigmas(row.steps, settings.shift)
    began = time.perf_counter()
    latents = generate(network, prompt, image, latent_frames(settings.frames), sigmas, settings.sampler, seed)
    seconds = time.perf_counter() - began
    return SampledRow(row, unit_to_frames(vae.decode(latents)), seconds)


def write_comparison(picture: Path, moving: Path, start: Tensor, rows: Sequence[SampledRow], fps: float) -> None:
    """Write the start image and the clips below each other as a picture, and next to each other as a moving picture.

    Args:
        picture: the PNG file to write: one row per clip, with frames from left to right.
        moving: the animated WebP file to write.
        start: the start image, uint8 `[H, W, 3]`.
        rows: the sampled rows.
        fps: frames per second of the moving picture.
    """
    labels = ["start image", *(sampled.row.label for sampled in rows)]
    clips = [start[None], *(sampled.clip for sampled in rows)]
    contact_sheet(clips, labels, _SHEET_COLUMNS).save(picture)
    write_video(moving, _moving_frames(clips, labels), fps, format=WEBP)


def _moving_frames(clips: Sequence[Tensor], labels: Sequence[str]) -> Iterator[Tensor]:
    """Return frames `[H, W, 3]` with all clips in a grid; a clip that has ended keeps its last frame."""
    for number in range(max(map(len, clips))):
        cells = [
            contact_sheet([clip[min(number, len(clip) - 1)][None]], [label], 1)
            for clip, label in zip(clips, labels, strict=True)
        ]
        width, height = cells[0].size
        lines = -(-len(cells) // _MOVING_COLUMNS)
        page = Image.new("RGB", (_MOVING_COLUMNS * width, lines * height), "white")
        for place, cell in enumerate(cells):
            page.paste(cell, (place % _MOVING_COLUMNS * width, place // _MOVING_COLUMNS * height))
        yield torch.from_numpy(np.array(page))

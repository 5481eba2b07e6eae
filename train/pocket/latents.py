"""Render and encode pocket portraits into a latent dataset. `prepare` does the same for real clips."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.pocket.files import VAE
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, FRAMES_PER_SECOND
from magicdistill_core.pocket.vocabulary import caption_of

from ..config.precision import bf16_is_fast
from ..data.dataset_index import DatasetIndex
from ..data.dataset_writer import LatentWriter
from ..data.vae import load_vae
from ..distributed import available_device
from ..folder_lock import folder_lock
from .captions import drawn_direction, encode_caption, vocabulary_index
from .dataset import PortraitFolder, render_clips, to_unit_frames

# Different from the training seeds of the pocket models (from 0) and from the held-out seeds (see dataset.py).
FIRST_SEED = 500_000


def write_latents(
    out: Path,
    clips: int,
    first_seed: int = FIRST_SEED,
    advance: Callable[[], None] = lambda: None,
    vae_file: Path = VAE,
    processes: int = 1,
    portraits: Path | None = None,
    stride: int = 1,
    captions: bool = False,
) -> None:
    """Render and encode portraits into a dataset folder, or continue an unfinished folder.

    The encoder runs on the GPU if there is one.

    Args:
        out: the dataset folder.
        clips: number of portraits.
        first_seed: seed of the first portrait. Each next portrait uses the next seed.
        advance: called after each clip.
        vae_file: the video autoencoder that encodes the clips.
        processes: number of processes that render.
        portraits: a folder of rendered portraits to encode; `first_seed` is then ignored. None renders the portraits
            now.
        stride: take every `stride`-th frame of longer clips, so that portraits move faster. The clips of `portraits`
            must be that long (`frames_needed`).
        captions: let each portrait follow a direction that its seed determines, and store the caption of that
            direction. Only for portraits that are rendered now.

    Raises:
        ValueError: if `captions` is set for rendered portraits, which followed other directions.
        PortraitFolderError: if `portraits` holds fewer clips, or clips of another size or length.
        MagicDistillError: if `out` cannot be written, or another process writes it.
    """
    if captions and portraits is not None:
        raise ValueError(f"The portraits in {portraits} follow no captions. Render them now, or set captions to False.")
    with folder_lock(out, "magicdistill pocket latents"):
        _write_latents(out, clips, first_seed, advance, vae_file, processes, portraits, stride, captions)


def _write_latents(
    out: Path,
    clips: int,
    first_seed: int,
    advance: Callable[[], None],
    vae_file: Path,
    processes: int,
    portraits: Path | None,
    stride: int,
    captions: bool,
) -> None:
    device = available_device()
    vae = load_vae(vae_file, device)
    index = DatasetIndex(
        frames=DEFAULT_FRAMES,
        height=DEFAULT_SIZE,
        width=DEFAULT_SIZE,
        fps=FRAMES_PER_SECOND / stride,
        dtype="float16",
        vae_sha256=weights_sha256(vae_file),
        texts=vocabulary_index() if captions else None,
    )
    folder = None
    if portraits is not None:
        folder = PortraitFolder(portraits)
        folder.require(clips, frames_needed(stride), DEFAULT_SIZE)
        first_seed = folder.config.first_seed
    with LatentWriter(out, index) as writer:
        seeds = range(first_seed, first_seed + clips)
        missing = [seed for seed in seeds if _key(seed) not in writer]
        for _ in range(len(seeds) - len(missing)):
            advance()
        # A GPU needs many clips at once to be fully used. A CPU is not faster with more than one.
        group = 32 if device.type == "cuda" else 1
        directions = [drawn_direction(seed) for seed in missing] if captions else None
        rendered: Iterator[Tensor] = (
            render_clips(missing, frames_needed(stride), DEFAULT_SIZE, processes, directions=directions)
            if folder is None
            else (folder.clip(seed - first_seed) for seed in missing)
        )
        for start in range(0, len(missing), group):
            chosen = missing[start : start + group]
            frames = to_unit_frames(torch.stack([next(rendered)[::stride] for _ in chosen]).to(device))
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16_is_fast(device)):
                latents = vae.encode(frames).float()
            for seed, latent in zip(chosen, latents, strict=True):
                # The encoder is causal, so latent 0 of a clip is equal to its first frame encoded as a still image.
                prompts = None
                if writer.texts is not None:
                    prompts = writer.texts.refer(caption_of(drawn_direction(seed)), encode_caption)
                writer.append(_key(seed), latent, StartImage(latent[None, :, :1]), prompts=prompts)
                advance()


def frames_needed(stride: int) -> int:
    """Return the number of frames that a clip needs, so that every `stride`-th frame makes a clip of default length."""
    return stride * (DEFAULT_FRAMES - 1) + 1


def _key(seed: int) -> str:
    return f"pocket-{seed}"

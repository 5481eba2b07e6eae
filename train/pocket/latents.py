"""A latent dataset of pocket portraits, rendered and encoded on the spot: what `prepare` makes of real clips."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magicdistill_core.pocket.files import VAE
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, FRAMES_PER_SECOND, portrait_clip

from ..latents import DatasetIndex, LatentWriter
from ..vae import load_vae, vae_sha256
from .dataset import to_unit_frames
from .run import training_device

# Apart from the portraits that the pocket models were trained on (from 0) and those held out (see dataset.py).
FIRST_SEED = 500_000


def write_latents(
    out: Path,
    clips: int,
    first_seed: int = FIRST_SEED,
    advance: Callable[[], None] = lambda: None,
    vae_file: Path = VAE,
    processes: int = 1,
) -> None:
    """Render and encode `clips` portraits into the dataset folder `out`; continues a folder that was begun.

    Encoding runs on the GPU where there is one.

    Args:
        advance: called after each clip.
        vae_file: the video autoencoder to encode with.
        processes: how many processes render.
    """
    device = training_device()
    vae = load_vae(vae_file, device)
    index = DatasetIndex(
        frames=DEFAULT_FRAMES,
        height=DEFAULT_SIZE,
        width=DEFAULT_SIZE,
        fps=FRAMES_PER_SECOND,
        dtype="float16",
        vae_sha256=vae_sha256(vae_file),
    )
    with LatentWriter(out, index) as writer:
        seeds = range(first_seed, first_seed + clips)
        missing = [seed for seed in seeds if _key(seed) not in writer]
        for _ in range(len(seeds) - len(missing)):
            advance()
        # A GPU is busy only with many clips at once; a CPU gains nothing from more than one.
        group = 32 if device.type == "cuda" else 1
        rendered = _render(missing, processes)
        for start in range(0, len(missing), group):
            chosen = missing[start : start + group]
            frames = to_unit_frames(torch.stack([next(rendered) for _ in chosen]).to(device))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                latents = vae.encode(frames).float()
            for seed, latent in zip(chosen, latents, strict=True):
                # Causal: latent 0 of a clip is its first frame encoded as a still image.
                writer.append(_key(seed), latent, latent[:, :1])
                advance()


def _key(seed: int) -> str:
    return f"pocket-{seed}"


def _render(seeds: Sequence[int], processes: int) -> Iterator[Tensor]:
    """The clips of the seeds, in order: uint8 `[T, H, W, 3]` each."""
    if processes == 1:
        yield from map(portrait_clip, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for clip in pool.imap(_render_one, seeds, chunksize=16):
            yield torch.from_numpy(clip)


def _render_one(seed: int) -> np.ndarray:
    # As numpy: tensors would travel between processes through shared memory, which a container may lack.
    return portrait_clip(seed).numpy()

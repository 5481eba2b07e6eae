"""A latent dataset of pocket portraits, rendered and encoded on the spot: what `prepare` makes of real clips."""

from collections.abc import Callable
from pathlib import Path

import torch

from magicdistill_core.families.base import StartImage
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.pocket.files import VAE
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, FRAMES_PER_SECOND

from ..data.dataset import DatasetIndex, LatentWriter
from ..data.vae import load_vae
from ..distributed import available_device
from .dataset import PortraitFolder, render_clips, to_unit_frames

# Apart from the portraits that the pocket models were trained on (from 0) and those held out (see dataset.py).
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
) -> None:
    """Render and encode `clips` portraits into the dataset folder `out`; continues a folder that was begun.

    Encoding runs on the GPU where there is one.

    Args:
        advance: called after each clip.
        vae_file: the video autoencoder to encode with.
        processes: how many processes render.
        portraits: a folder of rendered portraits to take the clips from, in place of rendering `first_seed` onwards.
        stride: every how manieth frame of longer clips is taken, so that portraits move faster; not with `portraits`.

    Raises:
        PortraitFolderError: if `portraits` holds fewer clips, or clips of another size.
    """
    device = available_device()
    vae = load_vae(vae_file, device)
    index = DatasetIndex(
        frames=DEFAULT_FRAMES,
        height=DEFAULT_SIZE,
        width=DEFAULT_SIZE,
        fps=FRAMES_PER_SECOND / stride,
        dtype="float16",
        vae_sha256=weights_sha256(vae_file),
    )
    folder = None
    if portraits is not None:
        folder = PortraitFolder(portraits)
        folder.require(clips, DEFAULT_FRAMES, DEFAULT_SIZE)
        first_seed = folder.config.first_seed
    with LatentWriter(out, index) as writer:
        seeds = range(first_seed, first_seed + clips)
        missing = [seed for seed in seeds if _key(seed) not in writer]
        for _ in range(len(seeds) - len(missing)):
            advance()
        # A GPU is busy only with many clips at once; a CPU gains nothing from more than one.
        group = 32 if device.type == "cuda" else 1
        rendered = (
            (clip[::stride] for clip in render_clips(missing, frames_needed(stride), DEFAULT_SIZE, processes))
            if folder is None
            else (folder.clip(seed - first_seed) for seed in missing)
        )
        for start in range(0, len(missing), group):
            chosen = missing[start : start + group]
            frames = to_unit_frames(torch.stack([next(rendered) for _ in chosen]).to(device))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                latents = vae.encode(frames).float()
            for seed, latent in zip(chosen, latents, strict=True):
                # Causal: latent 0 of a clip is its first frame encoded as a still image.
                writer.append(_key(seed), latent, StartImage(latent[None, :, :1]))
                advance()


def frames_needed(stride: int) -> int:
    """How long a clip must be for every `stride`-th of its frames to make one of the usual length."""
    return stride * (DEFAULT_FRAMES - 1) + 1


def _key(seed: int) -> str:
    return f"pocket-{seed}"

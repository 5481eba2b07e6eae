"""A latent dataset of pocket portraits, rendered and encoded on the spot: what `prepare` makes of real clips."""

from collections.abc import Callable
from pathlib import Path

import torch

from magicdistill_core.families.hunyuan_video import frames_to_unit
from magicdistill_core.pocket.files import VAE
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, FRAMES_PER_SECOND, portrait_clip

from ..latents import DatasetIndex, LatentWriter
from ..vae import load_vae, vae_sha256

# Apart from the portraits that the pocket models were trained on (from 0) and those held out (see dataset.py).
FIRST_SEED = 500_000


def write_latents(
    out: Path,
    clips: int,
    first_seed: int = FIRST_SEED,
    advance: Callable[[], None] = lambda: None,
    vae_file: Path = VAE,
) -> None:
    """Render and encode `clips` portraits into the dataset folder `out`; continues a folder that was begun.

    Args:
        advance: called after each clip.
        vae_file: the video autoencoder to encode with.
    """
    vae = load_vae(vae_file)
    index = DatasetIndex(
        frames=DEFAULT_FRAMES,
        height=DEFAULT_SIZE,
        width=DEFAULT_SIZE,
        fps=FRAMES_PER_SECOND,
        dtype="float16",
        vae_sha256=vae_sha256(vae_file),
    )
    with LatentWriter(out, index) as writer:
        for seed in range(first_seed, first_seed + clips):
            key = f"pocket-{seed}"
            if key not in writer:
                frames = frames_to_unit(portrait_clip(seed))
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    latent = vae.encode(frames)[0].float()
                # Causal: latent 0 of a clip is its first frame encoded as a still image.
                writer.append(key, latent, latent[:, :1])
            advance()

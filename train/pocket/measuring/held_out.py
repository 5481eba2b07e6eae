"""Held-out portraits: start images, what really followed, and what might have followed as well."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE

from ...config.precision import bf16_is_fast
from ...data.vae import Vae
from ...distributed import available_device
from ..dataset import HELD_OUT_SEED, render_clips, to_unit_frames


@dataclass(frozen=True)
class HeldOut:
    """Held-out portraits, encoded. N clips, S other futures of each.

    Attributes:
        images: latents of the start images, `[N, 16, 1, h, w]`.
        truths: latents of the clips, `[N, 16, t, h, w]`.
        futures: latents of other clips with the same first frames, `[N, S, 16, t, h, w]`. They are exact samples of
            what a perfect model would make.
    """

    images: Tensor
    truths: Tensor
    futures: Tensor


@torch.no_grad()
def encode(vae: Vae, frames: Tensor) -> Tensor:
    """Encode clips `[N, T, 3, H, W]` in [0, 1] to latents `[N, 16, t, h, w]`, on the CPU.

    A device that is fast in bf16 computes in it.

    The VAE must be on the GPU if there is one.
    """
    with _fast(device := available_device()):
        return torch.cat([vae.encode(clip.to(device)).float().cpu() for clip in frames.split(_at_once(device))])


@torch.no_grad()
def decode(vae: Vae, latents: Tensor) -> Tensor:
    """Decode latents `[N, 16, t, h, w]` to frames `[N, T, 3, H, W]` in [0, 1], on the CPU.

    A device that is fast in bf16 computes in it.

    The VAE must be on the GPU if there is one.
    """
    with _fast(device := available_device()):
        return torch.cat([vae.decode(clip.to(device)).float().cpu() for clip in latents.split(_at_once(device))])


def _fast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16_is_fast(device))


def _at_once(device: torch.device) -> int:
    # A GPU needs many clips at once to be fully used. A CPU is not faster with more than one.
    return 16 if device.type == "cuda" else 1


def hold_out(
    vae: Vae, clips: int, futures: int, processes: int = 1, advance: Callable[[], None] = lambda: None
) -> HeldOut:
    """Render and encode held-out portraits. Their seeds start at `HELD_OUT_SEED`.

    Args:
        vae: the autoencoder, on the GPU if there is one.
        clips: number N of portraits.
        futures: number S of other futures of each portrait.
        processes: number of processes that render.
        advance: called after each of the `N * (1 + S)` clips.
    """
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + clips)

    def encoded(future: int) -> Iterator[Tensor]:
        for frames in render_clips(seeds, DEFAULT_FRAMES, DEFAULT_SIZE, processes, future):
            yield encode(vae, to_unit_frames(frames[None]))
            advance()

    truths, *others = (torch.cat(list(encoded(future))) for future in range(1 + futures))
    # The encoder is causal, so latent 0 of a clip is its first frame encoded as a still image.
    return HeldOut(truths[:, :, :1], truths, torch.stack(others, dim=1))

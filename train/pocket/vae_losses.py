"""The losses of the pocket autoencoder, and the quality of its reconstructions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.taehv import TAEHV


def reconstruction_loss(
    made: Tensor, real: Tensor, edge_weight: float, coarse_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the reconstruction loss of frames, and its parts as scalars for the log.

    The loss is L1, plus weighted L1 of the spatial gradients (edges), plus weighted L1 of 4x reduced frames (coarse).

    Args:
        made: reconstructed frames `[B, T, 3, H, W]`.
        real: the original frames.
        edge_weight: weight of the edges; 0 leaves them out.
        coarse_weight: weight of the reduced frames; 0 leaves them out.

    Returns:
        The loss with its graph, and the unweighted parts by name.
    """
    error = made - real
    pixel = error.abs().mean()
    edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error.flatten(0, 1), 4).abs().mean()
    loss = pixel + edge_weight * edge + coarse_weight * coarse
    return loss, {"l1": pixel.item(), "edge": edge.item(), "coarse": coarse.item()}


def latent_loss(latents: Tensor) -> Tensor:
    """Return the squared distance of the channels' mean from 0 plus that of their covariance from the identity.

    Args:
        latents: `[B, C, t, h, w]`.
    """
    samples = latents.float().movedim(1, -1).flatten(0, -2)
    mean = samples.mean(dim=0)
    centered = samples - mean
    covariance = centered.T @ centered / samples.shape[0]
    identity = torch.eye(samples.shape[1], device=samples.device)
    return mean.square().sum() + (covariance - identity).square().sum()


def reconstruct(model: TAEHV, clips: Tensor, bf16: bool = False) -> Tensor:
    """Return clips after encoding and decoding, `[N, T, 3, H, W]` in float32.

    Args:
        model: the autoencoder.
        clips: `[N, 4n + 1, 3, H, W]` in [0, 1]; they are coded one at a time.
        bf16: compute in bf16 instead of the dtype of the weights.
    """
    with torch.no_grad(), torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=bf16):
        return torch.cat([model.decode(model.encode(clip[None])).float() for clip in clips])


def psnr(made: Tensor, real: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, as the mean over clips.

    Args:
        made: reconstructed clips `[N, T, 3, H, W]`, with values in [0, 1].
        real: the original clips.
    """
    error = (made - real).square().flatten(1).mean(dim=1)
    return float((-10 * torch.log10(error.clamp_min(1e-10))).mean())

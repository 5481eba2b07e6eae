"""Batches in ComfyUI's form (raw latents, masks that are 0 on the image, padded text), and random LoRAs for Wan."""

import torch
from torch import Tensor

from magicdistill_core.branch import LowRank
from magicdistill_core.families.wan import FEATURE_SHAPE, WanShape

# ComfyUI assumes this text width.
WAN_SHAPE = WanShape(in_channels=36, hidden=128, mlp=192, blocks=2, text_dim=4096, frequencies=256)


def hunyuan_batch() -> dict[str, Tensor]:
    """Return two noisy latents of three frames, each with the image's latent of one frame."""
    generator = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(2, 16, 3, 6, 8, generator=generator),
        "sigma": torch.tensor([0.9375, 0.625]),
        "image": torch.randn(2, 16, 1, 6, 8, generator=generator),
        "mask": _mask(),
    }


def wan_text() -> Tensor:
    """Return a text of seven tokens."""
    return torch.randn(1, 7, WAN_SHAPE.text_dim, generator=torch.Generator().manual_seed(5))


def wan_batch() -> dict[str, Tensor]:
    """Return a batch like `hunyuan_batch`, with latents of image and gray frames, and CLIP features."""
    generator = torch.Generator().manual_seed(4)
    return {
        "x": torch.randn(2, 16, 3, 6, 8, generator=generator),
        "sigma": torch.tensor([0.9375, 0.625]),
        "image": torch.randn(2, 16, 3, 6, 8, generator=generator),
        "mask": _mask(),
        "features": torch.randn(2, *FEATURE_SHAPE, generator=generator),
        "text": torch.nn.functional.pad(wan_text(), (0, 0, 0, 505)).repeat(2, 1, 1),
    }


def wan_branches(network: torch.nn.Module) -> dict[str, LowRank]:
    """Return LoRA branches for some diffusers-named modules of the last block."""
    generator = torch.Generator().manual_seed(9)
    branches = {}
    for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_v", "attn2.add_k_proj", "ffn.net.0.proj", "ffn.net.2"):
        out, width = network.get_submodule(f"blocks.1.{name}").weight.shape
        down = torch.randn(4, width, generator=generator) * 0.1
        branches[f"blocks.1.{name}"] = LowRank(down, torch.randn(out, 4, generator=generator) * 0.1, 8.0)
    return branches


def _mask() -> Tensor:
    mask = torch.ones(1, 1, 3, 6, 8)
    mask[:, :, :1] = 0
    return mask

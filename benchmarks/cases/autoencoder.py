"""Encode and decode one clip with two autoencoders: a small one in TAEHV's layout, and HunyuanVideo's."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from magicdistill_core.taehv import TAEHV
from train.data.diffusers_vaes import HunyuanVideoVae
from train.data.vae import Vae

from ..harness import Bench
from ..models import fill_randomly
from ..sizes import Clip

_POCKET_WIDTHS = (16, 16, 32, 32)


def run(bench: Bench) -> None:
    """Measure both autoencoders at clips that fit into memory."""
    sizes = bench.sizes
    with torch.inference_mode():
        _case(bench, "TAEHV layout", lambda: _taehv(bench), sizes.small, 5)
        # Only the small clip: HunyuanVideo's autoencoder takes a large part of a second per frame even on a large GPU.
        _case(bench, f"HunyuanVideo's{'' if bench.full else ' at pocket width'}", lambda: _full(bench), sizes.small, 15)
        _case(bench, "TAEHV layout", lambda: _taehv(bench), sizes.usual, 10)


def _taehv(bench: Bench) -> Vae:
    model = TAEHV().to(bench.device)
    fill_randomly(model, bench.generator())
    return model.eval()


def _full(bench: Bench) -> Vae:
    with bench.device:
        model = (
            AutoencoderKLHunyuanVideo()
            if bench.full
            else AutoencoderKLHunyuanVideo(block_out_channels=_POCKET_WIDTHS, layers_per_block=1, norm_num_groups=4)
        )
    fill_randomly(model, bench.generator())
    return HunyuanVideoVae(model.half() if bench.device.type == "cuda" else model)


def _case(bench: Bench, name: str, make: Callable[[], Vae], clip: Clip, seconds: float) -> None:
    case = f"{name}, {clip.name}"
    if not bench.time_for(case, seconds):
        return
    frames = torch.rand(1, clip.frames, 3, clip.height, clip.width, generator=torch.Generator().manual_seed(0))
    with bench.case(case):
        vae = make()
        pixels = frames.to(bench.device)
        latents: Tensor = vae.encode(pixels)
        # Not in turns: `encode` has run once already, `decode` has not.
        for step, once in (("encode", lambda: vae.encode(pixels)), ("decode", lambda: vae.decode(latents))):
            timing = bench.compare({step: once}, repeats=2)[step]
            bench.record(f"{case}: {step}", **timing.row(), frames_per_s=clip.frames / timing.median)

"""The computed FLOP of a forward are equal to those that PyTorch counts."""

import dataclasses

import pytest
import torch
from accelerate import init_empty_weights
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import random_clip, random_network, random_prompt
from benchmarks.sizes import FULL_SIZES, POCKET_SIZES, Sizes, forward_flops
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import build_network


def counted(sizes: Sizes) -> int:
    """PyTorch's count of one forward at the usual size, without computing it."""
    meta = torch.device("meta")
    with init_empty_weights():
        network = build_network(sizes.shape).eval()
    x = torch.empty(sizes.usual.latent, device=meta)
    from magicdistill_core.families.base import NullPrompt

    prompt = NullPrompt(
        torch.empty(1, sizes.text_tokens, sizes.shape.text_dim, device=meta),
        torch.empty(1, sizes.shape.pooled_dim, device=meta),
    )
    condition = torch.empty(1, 17, *x.shape[2:], device=meta)
    inputs = network_inputs(x, torch.empty(1, device=meta), condition, prompt)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(**inputs, return_dict=False)
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", [POCKET_SIZES, FULL_SIZES], ids=["pocket", "13B"])
def test_forward_flops_are_those_that_pytorch_counts(sizes: Sizes) -> None:
    assert forward_flops(sizes.shape, sizes.usual.tokens, sizes.text_tokens) == counted(sizes)


def test_guidance_embedding_is_counted() -> None:
    shape = dataclasses.replace(POCKET_SIZES.shape, guidance_embed=True)
    more = forward_flops(shape, 100, 8) - forward_flops(POCKET_SIZES.shape, 100, 8)
    assert more == 2 * (256 * shape.hidden + shape.hidden**2)


def test_a_random_network_runs_and_repeats() -> None:
    sizes, device = POCKET_SIZES, torch.device("cpu")

    def velocity() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        network = random_network(sizes.shape, device, torch.float32, generator)
        prompt = random_prompt(sizes.shape, sizes.text_tokens, device, generator)
        x, condition = random_clip(sizes.small, device, torch.float32, generator)
        return network(**network_inputs(x, torch.ones(1), condition, prompt), return_dict=False)[0]

    first = velocity()
    assert first.shape == sizes.small.latent
    assert first.isfinite().all()
    assert first.std() > 0
    torch.testing.assert_close(first, velocity())

"""The trainer's network: attention without a mask equals diffusers' masked attention, and weights are copied."""

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from magicdistill_core.families.base import NullPrompt
from tests.makers import hunyuan_shape, seeded_network
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import build_network, network_velocity

SHAPE = hunyuan_shape(single_blocks=2)


def _networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our network, and an unchanged diffusers network with the same weights."""
    ours, stock = seeded_network(SHAPE), seeded_network(SHAPE)
    for block in (*stock.transformer_blocks, *stock.single_transformer_blocks):
        block.attn.set_processor(HunyuanVideoAttnProcessor2_0())
    return ours, stock


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NullPrompt]:
    generator = torch.Generator().manual_seed(1)
    prompt = NullPrompt(torch.randn(1, 5, 16, generator=generator), torch.randn(1, 768, generator=generator))
    x = torch.randn(2, 16, 2, 4, 6, generator=generator)
    condition = torch.randn(2, 17, 2, 4, 6, generator=generator)
    return x, torch.tensor([0.9375, 0.3]), condition, prompt


def test_attention_without_a_mask_is_diffusers_own() -> None:
    """Without padding, velocities and gradients equal those of diffusers' masked attention."""
    ours, stock = _networks()
    inputs = network_inputs(*_inputs())
    velocities = [network(**inputs, return_dict=False)[0] for network in (ours, stock)]
    assert velocities[1].std() > 0.1
    torch.testing.assert_close(*velocities, atol=1e-6, rtol=1e-6)
    for velocity in velocities:
        velocity.square().mean().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_no_block_hands_a_mask_to_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        if query.shape[2] > 5:  # not the prompt's own refiner
            masks.append(settings.get("attn_mask"))
        return attention(query, *args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    x, sigma, condition, prompt = _inputs()
    with torch.no_grad():
        network_velocity(build_network(SHAPE), condition, prompt)(x, sigma)
    assert masks == [None] * (SHAPE.double_blocks + SHAPE.single_blocks)

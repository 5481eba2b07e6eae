"""Networks with new inputs compute exactly the same velocities as before, and can learn to use the inputs."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from magicdistill_core.checkpoint import parse_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file, file_to_diffusers
from magicdistill_core.widening import add_guidance_embedding, widen_to_image

HIDDEN = 128


def network(in_channels: int, guidance: bool) -> HunyuanVideoTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HunyuanVideoTransformer3DModel(
            in_channels=in_channels,
            out_channels=16,
            num_attention_heads=1,
            num_layers=1,
            num_single_layers=1,
            guidance_embeds=guidance,
            text_embed_dim=8,
        ).eval()


def file_state(model: HunyuanVideoTransformer3DModel) -> dict[str, Tensor]:
    return diffusers_to_file(HUNYUAN_VIDEO, model.state_dict())


def loaded(state: dict[str, Tensor], in_channels: int, guidance: bool) -> HunyuanVideoTransformer3DModel:
    model = network(in_channels, guidance)
    model.load_state_dict(file_to_diffusers(HUNYUAN_VIDEO, state, HIDDEN))
    return model


def inputs(channels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, channels, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([937.5, 200.0]),
        "encoder_hidden_states": torch.randn(2, 3, 8, generator=generator),
        "encoder_attention_mask": torch.ones(2, 3, dtype=torch.bool),
        "pooled_projections": torch.randn(2, 768, generator=generator),
    }


def test_widening_to_an_image_does_not_change_the_velocity() -> None:
    original = network(16, False)
    state = file_state(original)
    widened = loaded(widen_to_image(state, "t2v"), 33, False)
    given = inputs(33)
    narrow = given | {"hidden_states": given["hidden_states"][:, :16]}
    with torch.no_grad():
        expected = original(**narrow, return_dict=False)[0]
        # The convolution sums over more channels, so the order of its sum changes.
        torch.testing.assert_close(widened(**given, return_dict=False)[0], expected, rtol=1e-5, atol=1e-6)
        other = given | {
            "hidden_states": torch.cat([given["hidden_states"][:, :16], torch.ones(2, 17, 2, 4, 4)], dim=1)
        }
        assert torch.equal(widened(**other, return_dict=False)[0], widened(**given, return_dict=False)[0])
    weight = widen_to_image(state, "t2v")["img_in.proj.weight"]
    assert torch.equal(weight[:, :16], state["img_in.proj.weight"])
    assert not weight[:, 16:].any()
    assert parse_checkpoint(widen_to_image(state, "t2v"), None, "x").shape.in_channels == 33


def test_only_text_to_video_networks_are_widened() -> None:
    with pytest.raises(CheckpointError, match=r"teacher .* 33 "):
        widen_to_image(file_state(network(33, False)), "teacher")


def test_a_new_guidance_embedding_changes_nothing_until_it_is_trained() -> None:
    original = network(33, False)
    guided = loaded(add_guidance_embedding(file_state(original), "teacher"), 33, True)
    given = inputs(33)
    with torch.no_grad():
        expected = original(**given, return_dict=False)[0]
        for scale in (1.0, 6.0):
            found = guided(**given, guidance=torch.full((2,), 1000 * scale), return_dict=False)[0]
            assert torch.equal(found, expected)
    # The embedding can be trained: its last layer has a gradient that depends on the scale.
    gradients = []
    for scale in (1.0, 6.0):
        guided.zero_grad()
        guided(**given, guidance=torch.full((2,), 1000 * scale), return_dict=False)[0].square().mean().backward()
        gradients.append(guided.time_text_embed.guidance_embedder.linear_2.weight.grad.clone())
    assert gradients[0].abs().sum() > 0
    assert not torch.allclose(gradients[0], gradients[1])


def test_an_architecture_without_guidance_input_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"wan\.safetensors .*guidance.*HunyuanVideo"):
        add_guidance_embedding({"patch_embedding.weight": torch.zeros(1)}, "wan.safetensors")


def test_an_existing_guidance_embedding_stays() -> None:
    state = file_state(network(16, True))
    again = add_guidance_embedding(state, "teacher")
    assert again.keys() == state.keys()
    assert all(again[key] is state[key] for key in state)

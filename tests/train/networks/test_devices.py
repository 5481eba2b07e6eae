"""All tensors of a network are on its device.

The tests use the device `meta`, which refuses tensors of the CPU, so they need no GPU.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from transformers import CLIPVisionConfig, CLIPVisionModel

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import Family, NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.layouts.modules import diffusers_to_file
from tests.makers import hunyuan_shape, wan_shape
from train.data.start_images import ClipVision, StartImageEncoder
from train.data.vae import load_vae
from train.memory.bytes_held import META
from train.networks.network import build_network, load_network
from train.networks.sampling import generate

SHAPES = {
    CONCAT: hunyuan_shape(),
    TOKEN_REPLACE: hunyuan_shape(in_channels=16, guidance_embed=True),
    IMAGE_TO_VIDEO: wan_shape(blocks=1),
}


@pytest.mark.parametrize("family", SHAPES, ids=lambda family: f"{family.architecture.name}-{family.i2v_mode}")
@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_sample_is_made_where_the_network_is(family: Family, sampler: str) -> None:
    built = build_network(SHAPES[family], family)
    state = diffusers_to_file(family.architecture.layout, built.state_dict())
    network = load_network(Checkpoint(state, SHAPES[family], None, None, "x", family.i2v_mode), device=META)
    assert {tensor.device for tensor in [*network.parameters(), *network.buffers()]} == {META}

    pooled = torch.zeros(1, 768) if family.architecture.prompt_has_pooled else None
    features = None if family.feature_shape is None else torch.zeros(1, *FEATURE_SHAPE)
    image = StartImage(torch.zeros(1, 16, family.image_frames(3), 4, 4), features).to(META)
    made = generate(
        network,
        NullPrompt(torch.zeros(1, 3, 16), pooled),
        image,
        3,
        few_step_sigmas(2, 5.0),
        sampler,  # type: ignore[arg-type]
        seed=0,
    )
    assert (made.device, made.shape) == (META, (1, 16, 3, 4, 4))


@pytest.mark.parametrize("kind", ["taehv", "hunyuan", "wan"])
def test_clips_are_encoded_and_decoded_where_the_vae_is(kind: str, taehv_file: Path, tmp_path: Path) -> None:
    path = taehv_file
    if kind == "hunyuan":
        path = tmp_path / "vae"
        AutoencoderKLHunyuanVideo(
            block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2
        ).save_pretrained(path)
    elif kind == "wan":
        path = tmp_path / "vae"
        AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(path)
    vae = load_vae(path, META)
    video = torch.zeros(1, 5, 3, 32, 32, device=META)
    latents = vae.encode(video)
    assert (latents.device, latents.shape) == (META, (1, 16, 2, 4, 4))
    assert vae.decode(latents).device == META
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=2, patch_size=14, image_size=28)).to(META)
    start = StartImageEncoder(vae, ClipVision(clip)).encode(video[:, 0], 5)
    assert start.features is not None
    assert (start.latents.device, start.features.device) == (META, META)

import pytest
import torch

from magicdistill_core.errors import CheckpointError
from magicdistill_core.families import choose_family
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import (
    ARCHITECTURE,
    CONCAT,
    TOKEN_REPLACE,
    NetworkShape,
    concat_condition,
    network_shape,
)
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from train.networks.network import build_network

SHAPE = NetworkShape(
    in_channels=33,
    hidden=256,
    double_blocks=2,
    single_blocks=3,
    refiner_blocks=1,
    text_dim=24,
    pooled_dim=40,
    guidance_embed=True,
)


def test_condition_is_image_on_frame_0_then_mask() -> None:
    image = torch.randn(2, 16, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    condition = concat_condition(image, 3)
    assert condition.shape == (2, 17, 3, 2, 3)
    assert torch.equal(condition[:, :16, :1], image)
    assert torch.count_nonzero(condition[:, :16, 1:]) == 0
    assert condition[:, 16].mean(dim=(0, 2, 3)).tolist() == [1.0, 0.0, 0.0]


def test_sizes_are_read_off_the_weights() -> None:
    state = diffusers_to_file(HUNYUAN_VIDEO, build_network(SHAPE).state_dict())
    assert network_shape(state) == SHAPE
    assert SHAPE.heads == 2
    assert not network_shape({k: v for k, v in state.items() if not k.startswith("guidance_in.")}).guidance_embed


def test_other_versions_and_other_families_are_refused() -> None:
    state = diffusers_to_file(HUNYUAN_VIDEO, build_network(SHAPE).state_dict())
    with pytest.raises(CheckpointError, match=r"blocks\.0\.self_attn"):
        network_shape({"blocks.0.self_attn.q.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"HunyuanVideo 1\.5"):
        network_shape({key: value for key, value in state.items() if not key.startswith("vector_in.")})
    with pytest.raises(CheckpointError, match=r"\[100, 33, 1, 2, 2\]"):
        network_shape(state | {"img_in.proj.weight": torch.zeros(100, 33, 1, 2, 2)})


@pytest.mark.parametrize(
    ("channels", "said", "asked", "mode"),
    [
        (33, None, None, "concat"),
        (33, "concat", "concat", "concat"),
        (16, "token_replace", None, "token_replace"),
        (16, None, "token_replace", "token_replace"),
        (16, "none", None, "none"),
    ],
)
def test_the_family_follows_from_the_weights_the_file_and_the_setting(
    channels: int, said: str | None, asked: str | None, mode: str
) -> None:
    assert choose_family(ARCHITECTURE, channels, said, asked, "a.safetensors").i2v_mode == mode


@pytest.mark.parametrize(
    ("channels", "said", "asked", "why"),
    [
        (32, None, None, r"a\.safetensors .*HunyuanVideo .* 32 .* 33"),
        (16, None, None, r"a\.safetensors .* 16 .*i2v_mode=token_replace or none"),
        (16, "concat", None, r"a\.safetensors .* 16 .*i2v_mode 'concat'.* token_replace or none"),
        (33, None, "token_replace", r"a\.safetensors .* 33 .*i2v_mode 'token_replace'.* concat\."),
        (16, "none", "token_replace", r"a\.safetensors .*i2v_mode 'none'.*i2v_mode .*'token_replace'"),
    ],
)
def test_contradictory_and_undecided_image_modes_are_refused(
    channels: int, said: str | None, asked: str | None, why: str
) -> None:
    with pytest.raises(CheckpointError, match=why):
        choose_family(ARCHITECTURE, channels, said, asked, "a.safetensors")


def test_token_replace_keeps_the_start_frame() -> None:
    latents = torch.randn(2, 16, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    image = StartImage(torch.ones(2, 16, 1, 2, 2))
    free = TOKEN_REPLACE.free(latents)
    assert torch.equal(free, latents[:, :, 1:])
    assert TOKEN_REPLACE.free_shape(tuple(latents.shape)) == free.shape
    whole = TOKEN_REPLACE.whole(free, image)
    assert torch.equal(whole, torch.cat([image.latents, free], dim=2))
    assert torch.equal(CONCAT.whole(latents, image), latents)
    assert CONCAT.free_shape((16, 4, 2, 2)) == (16, 4, 2, 2)

"""Names of wrapper modules disappear from tensor names, and all other names stay."""

import pytest
import torch

from magicdistill_core.checkpoint import parse_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import place_lora
from magicdistill_core.layouts.lora_tensors import read_lora
from magicdistill_core.layouts.modules import fill
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.layouts.wrapper_names import without_wrappers
from tests.makers import file_state, hunyuan_shape

NAME = "double_blocks.0.img_attn_proj"


@pytest.mark.parametrize(
    "name",
    [
        f"diffusion_model._orig_mod.{NAME}",
        f"base_model.model._orig_mod.{NAME}",
        "diffusion_model.double_blocks.0._orig_mod.img_attn_proj",
        f"diffusion_model.{NAME}._orig_mod",
        f"module._orig_mod.module.{NAME}",
        "transformer.double_blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.img_attn_proj",
        f"_forward_module.{NAME}",
        "lora_unet__orig_mod_double_blocks_0_img_attn_proj",
        "lora_unet_double_blocks_0__orig_mod_img_attn_proj",
        "lora_unet_double_blocks_0_img_attn_proj__orig_mod",
        "lora_unet__fsdp_wrapped_module__orig_mod_double_blocks_0__checkpoint_wrapped_module_img_attn_proj",
        "lora_unet_module_double_blocks_0_img_attn_proj",
        "Hunyuan_video_I2V_lora__orig_mod_double_blocks_0_img_attn_proj",
    ],
)
@pytest.mark.parametrize(
    "halves", [("lora_down", "lora_up"), ("lora.down", "lora.up"), ("lora_A.default", "lora_B.default")]
)
def test_loras_of_wrapped_networks_are_read(name: str, halves: tuple[str, str]) -> None:
    state = {f"{name}.{halves[0]}.weight": torch.ones(4, 128), f"{name}.{halves[1]}.weight": torch.ones(128, 4)}
    state[f"{name}.alpha"] = torch.tensor(2.0)
    placed = place_lora(HUNYUAN_VIDEO, read_lora(state), 128)
    assert placed.branches.keys() == {NAME}
    assert placed.branches[NAME].alpha == 2


@pytest.mark.parametrize("layout", [HUNYUAN_VIDEO, WAN])
def test_no_name_of_a_network_is_changed(layout: object) -> None:
    names = [fill(name, "0") for module in layout.modules for name in (module.file, *module.parts)]
    flat = [f"lora_unet_{name.replace('.', '_')}" for name in names]
    assert [without_wrappers(name) for name in names + flat] == names + flat


@pytest.mark.parametrize(
    "renamed",
    [
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"model.{key}".replace("blocks.0.", "blocks.0._orig_mod."),
        lambda key: f"_fsdp_wrapped_module.{key}".replace("img_in.", "img_in._fsdp_wrapped_module."),
        lambda key: key.replace("_attn_qkv.", "_attn_qkv._checkpoint_wrapped_module."),
    ],
)
def test_checkpoints_of_wrapped_networks_are_read(renamed: object) -> None:
    state = file_state(hunyuan_shape())
    found = parse_checkpoint({renamed(key): value for key, value in state.items()}, None, "x").state
    assert found.keys() == state.keys()
    assert all(found[key] is state[key] for key in state)


def test_two_tensors_of_one_name_are_refused() -> None:
    state = file_state(hunyuan_shape())
    with pytest.raises(CheckpointError, match=r"x holds img_in\.proj\.bias twice"):
        parse_checkpoint(state | {"img_in._orig_mod.proj.bias": state["img_in.proj.bias"]}, None, "x")

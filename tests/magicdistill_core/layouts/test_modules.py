import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE, NetworkShape
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import (
    LayoutMap,
    Module,
    diffusers_to_file,
    file_to_diffusers,
    listing,
    missing_keys,
    swap_halves,
)
from tests.makers import hunyuan_shape, seeded_network

# Names in Tencent's released files, and diffusers' names of the same tensors.
GOLDEN = {
    "img_in.proj.weight": ["x_embedder.proj.weight"],
    "txt_in.input_embedder.bias": ["context_embedder.proj_in.bias"],
    "txt_in.t_embedder.mlp.0.weight": ["context_embedder.time_text_embed.timestep_embedder.linear_1.weight"],
    "txt_in.c_embedder.linear_2.weight": ["context_embedder.time_text_embed.text_embedder.linear_2.weight"],
    "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight": [
        f"context_embedder.token_refiner.refiner_blocks.1.attn.to_{part}.weight" for part in "qkv"
    ],
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": [
        "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.bias"
    ],
    "time_in.mlp.2.weight": ["time_text_embed.timestep_embedder.linear_2.weight"],
    "vector_in.in_layer.weight": ["time_text_embed.text_embedder.linear_1.weight"],
    "double_blocks.1.img_mod.linear.weight": ["transformer_blocks.1.norm1.linear.weight"],
    "double_blocks.0.img_attn_qkv.weight": [f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"],
    "double_blocks.0.txt_attn_qkv.bias": [f"transformer_blocks.0.attn.add_{part}_proj.bias" for part in "qkv"],
    "double_blocks.0.txt_attn_k_norm.weight": ["transformer_blocks.0.attn.norm_added_k.weight"],
    "double_blocks.0.img_attn_proj.weight": ["transformer_blocks.0.attn.to_out.0.weight"],
    "double_blocks.0.txt_mlp.fc2.weight": ["transformer_blocks.0.ff_context.net.2.weight"],
    "single_blocks.2.linear1.weight": [
        *(f"single_transformer_blocks.2.attn.to_{part}.weight" for part in "qkv"),
        "single_transformer_blocks.2.proj_mlp.weight",
    ],
    "single_blocks.0.modulation.linear.bias": ["single_transformer_blocks.0.norm.linear.bias"],
    "single_blocks.0.q_norm.weight": ["single_transformer_blocks.0.attn.norm_q.weight"],
    "final_layer.linear.weight": ["proj_out.weight"],
}
COMFYUI = {
    "time_in.in_layer.weight": "time_in.mlp.0.weight",
    "guidance_in.out_layer.bias": "guidance_in.mlp.2.bias",
    "txt_in.t_embedder.out_layer.weight": "txt_in.t_embedder.mlp.2.weight",
    "txt_in.c_embedder.in_layer.weight": "txt_in.c_embedder.linear_1.weight",
    "txt_in.individual_token_refiner.blocks.0.self_attn.qkv.weight": (
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight"
    ),
    "txt_in.individual_token_refiner.blocks.0.mlp.0.bias": "txt_in.individual_token_refiner.blocks.0.mlp.fc1.bias",
    "double_blocks.3.img_mod.lin.weight": "double_blocks.3.img_mod.linear.weight",
    "double_blocks.3.txt_attn.qkv.weight": "double_blocks.3.txt_attn_qkv.weight",
    "double_blocks.3.txt_attn.norm.query_norm.scale": "double_blocks.3.txt_attn_q_norm.weight",
    "double_blocks.3.img_mlp.2.weight": "double_blocks.3.img_mlp.fc2.weight",
    "single_blocks.9.modulation.lin.bias": "single_blocks.9.modulation.linear.bias",
    "single_blocks.9.norm.key_norm.weight": "single_blocks.9.k_norm.weight",
}


def shape(**changes: int | bool) -> NetworkShape:
    return hunyuan_shape(**({"double_blocks": 2, "single_blocks": 3, "refiner_blocks": 2} | changes))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(seeded_network(shape()).state_dict())


def test_golden_names_hold_the_stacked_rows(state: dict[str, Tensor]) -> None:
    file = diffusers_to_file(HUNYUAN_VIDEO, state)
    for name, parts in GOLDEN.items():
        assert torch.equal(file[name], torch.cat([state[part] for part in parts])), name


def test_the_final_modulation_swaps_scale_and_shift(state: dict[str, Tensor]) -> None:
    # diffusers' AdaLayerNormContinuous reads [scale, shift], Tencent's final layer [shift, scale].
    for leaf in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        file = diffusers_to_file(HUNYUAN_VIDEO, state)[f"final_layer.adaLN_modulation.1.{leaf}"]
        assert torch.equal(file, torch.cat([shift, scale]))
    assert torch.equal(swap_halves(swap_halves(state["norm_out.linear.weight"])), state["norm_out.linear.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden": 384, "double_blocks": 1, "single_blocks": 1, "refiner_blocks": 1},
        {"guidance_embed": True, "in_channels": 16},
        {"double_blocks": 11, "single_blocks": 12},
    ],
)
def test_every_tensor_comes_back_at_any_size(changes: dict[str, int]) -> None:
    sizes = shape(**changes)
    original = seeded_network(sizes, CONCAT if sizes.in_channels == 33 else TOKEN_REPLACE, seed=1).state_dict()
    file = diffusers_to_file(HUNYUAN_VIDEO, original)
    assert missing_keys(HUNYUAN_VIDEO, file) == []
    back = file_to_diffusers(HUNYUAN_VIDEO, file, sizes.hidden)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)
    assert sum(value.numel() for value in file.values()) == sum(value.numel() for value in original.values())


@pytest.mark.parametrize(("spelt", "canonical"), COMFYUI.items())
def test_comfyuis_spelling_is_read_as_tencents(spelt: str, canonical: str) -> None:
    assert HUNYUAN_VIDEO.canonical(spelt) == canonical
    assert HUNYUAN_VIDEO.canonical(canonical) == canonical
    assert HUNYUAN_VIDEO.file_module(canonical.rpartition(".")[0]) is not None


def test_unknown_and_missing_tensors_are_listed(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"1 tensors.*mystery\.weight"):
        diffusers_to_file(HUNYUAN_VIDEO, state | {"mystery.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"proj_out\.scale"):
        diffusers_to_file(HUNYUAN_VIDEO, state | {"proj_out.scale": torch.zeros(1)})
    partial = {key: value for key, value in state.items() if key != "transformer_blocks.1.attn.to_k.weight"}
    with pytest.raises(
        CheckpointError, match=r"double_blocks\.1\.img_attn_qkv\.weight.*transformer_blocks\.1\.attn\.to_k"
    ):
        diffusers_to_file(HUNYUAN_VIDEO, partial)
    file = diffusers_to_file(HUNYUAN_VIDEO, state)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mystery"):
        file_to_diffusers(HUNYUAN_VIDEO, file | {"double_blocks.0.mystery.weight": torch.zeros(1)}, 128)
    with pytest.raises(CheckpointError, match=r"384 rows.* 3 parts .*256"):
        file_to_diffusers(HUNYUAN_VIDEO, file, 256)
    del file["single_blocks.1.linear2.bias"], file["vector_in.in_layer.weight"]
    assert set(missing_keys(HUNYUAN_VIDEO, file)) == {"single_blocks.1.linear2.bias", "vector_in.in_layer.weight"}


def test_an_optional_module_may_be_missing_but_not_incomplete(state: dict[str, Tensor]) -> None:
    file = diffusers_to_file(HUNYUAN_VIDEO, state)
    assert missing_keys(HUNYUAN_VIDEO, file | {"guidance_in.mlp.0.weight": torch.zeros(1)}) == [
        "guidance_in.mlp.0.bias"
    ]


def test_every_module_is_in_the_map_once() -> None:
    files = [module.file for module in HUNYUAN_VIDEO.modules]
    parts = [part for module in HUNYUAN_VIDEO.modules for part in module.parts]
    assert len(set(files)) == len(files)
    assert len(set(parts)) == len(parts)
    tiny = LayoutMap((Module("a.{i}.b", ("c.{i}.d",)),))
    assert tiny.file_module("a.0.x") is None
    assert listing(["b", "a", "c"], limit=2) == "a, b and 1 more"

"""LoRA dialects: the same change of weights is written in each dialect and must be read back equal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families import hunyuan_video, wan
from magicdistill_core.families.base import Architecture
from magicdistill_core.layouts.dialects import dotted, stated_alpha
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.lora_tensors import parse_lora, read_lora
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.lora_file import is_lora, load_lora, load_lora_for

HIDDEN, RANK, ALPHA = 128, 4, 2.0
HALVES = {"peft": ("lora_A.weight", "lora_B.weight"), "adapter": ("lora_A.default.weight", "lora_B.default.weight")}
HALVES |= {"kohya": ("lora_down.weight", "lora_up.weight"), "dots": ("lora.down.weight", "lora.up.weight")}
HALVES |= {"bare": ("lora_A", "lora_B")}
# Module of the file layout -> its name in ComfyUI's own names, rows and columns.
HUNYUAN = {
    "double_blocks.1.img_attn_qkv": ("double_blocks.1.img_attn.qkv", 3 * HIDDEN, HIDDEN),
    "double_blocks.1.txt_mod.linear": ("double_blocks.1.txt_mod.lin", 6 * HIDDEN, HIDDEN),
    "double_blocks.0.txt_mlp.fc2": ("double_blocks.0.txt_mlp.2", HIDDEN, 4 * HIDDEN),
    "single_blocks.12.linear1": ("single_blocks.12.linear1", 7 * HIDDEN, HIDDEN),
    "single_blocks.12.modulation.linear": ("single_blocks.12.modulation.lin", 3 * HIDDEN, HIDDEN),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": (
        "txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
        3 * HIDDEN,
        HIDDEN,
    ),
    "txt_in.individual_token_refiner.blocks.1.mlp.fc1": (
        "txt_in.individual_token_refiner.blocks.1.mlp.0",
        4 * HIDDEN,
        HIDDEN,
    ),
    "time_in.mlp.0": ("time_in.in_layer", HIDDEN, 256),
}
WAN_MODULES = {
    "blocks.3.self_attn.q": ("blocks.3.self_attn.q", HIDDEN, HIDDEN),
    "blocks.13.cross_attn.v_img": ("blocks.13.cross_attn.v_img", HIDDEN, HIDDEN),
    "blocks.3.ffn.0": ("blocks.3.ffn.0", 2 * HIDDEN, HIDDEN),
    "time_projection.1": ("time_projection.1", 6 * HIDDEN, HIDDEN),
}
FAMILIES: dict[str, tuple[Architecture, dict[str, tuple[str, int, int]]]] = {
    "hunyuan": (hunyuan_video.ARCHITECTURE, HUNYUAN),
    "wan": (wan.ARCHITECTURE, WAN_MODULES),
}


def flat(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


# Name of the dialect -> (how it names a module, its halves, whether it takes ComfyUI's spelling of the modules).
DIALECTS: dict[str, tuple[Callable[[str], str], str, bool]] = {
    "this project, diffusion-pipe": (lambda name: f"diffusion_model.{name}", "peft", False),
    "transformer.": (lambda name: f"transformer.{name}", "peft", False),
    "peft's own": (lambda name: f"base_model.model.{name}", "peft", False),
    "peft around a pipeline": (lambda name: f"base_model.model.transformer.{name}", "adapter", False),
    "DiffSynth": (lambda name: name, "adapter", False),
    "musubi": (flat("lora_unet_"), "kohya", False),
    "ComfyUI's spelling, underscores": (flat("lora_unet_"), "kohya", True),
    "lightx2v": (lambda name: f"diffusion_model.{name}", "kohya", False),
    "ComfyUI's spelling": (lambda name: f"diffusion_model.{name}", "peft", True),
    "lycoris": (flat("lycoris_"), "kohya", False),
    "Wan-Fun's trainer": (flat("lora_unet__"), "kohya", False),
    "HunyuanVideo-I2V's trainer": (flat("Hunyuan_video_I2V_lora_"), "kohya", False),
    "old diffusers": (lambda name: f"transformer.{name}", "dots", False),
    "parameters without modules": (lambda name: f"diffusion_model.{name}", "bare", False),
}


def pair(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator)


@pytest.mark.parametrize("alpha", [ALPHA, None])
@pytest.mark.parametrize("dialect", list(DIALECTS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_dialect_is_read_as_the_same_change(
    family: str, dialect: str, alpha: float | None, tmp_path: Path
) -> None:
    architecture, modules = FAMILIES[family]
    name_of, halves, comfyui = DIALECTS[dialect]
    down_name, up_name = HALVES[halves]
    state, expected = {}, {}
    for seed, (module, (other, rows, columns)) in enumerate(modules.items()):
        down, up = pair(rows, columns, seed)
        name = name_of(other if comfyui else module)
        state |= {f"{name}.{down_name}": down, f"{name}.{up_name}": up}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
        expected[module] = (1.0 if alpha is None else alpha / RANK) * (up @ down)
    save_file(state, tmp_path / "lora.safetensors")
    lora = load_lora_for(architecture, tmp_path / "lora.safetensors", HIDDEN)
    assert (lora.misses, lora.alpha_stated) == ((), alpha is not None)
    assert lora.branches.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(lora.branches[module].delta(1.0), delta)
    assert load_lora(tmp_path / "lora.safetensors", HIDDEN).branches.keys() == expected.keys()


@pytest.mark.parametrize("prefix", ["transformer.", "lora_transformer_", "lora_unet_", "lora_unet__", "lycoris_"])
def test_split_projections_of_diffusers_fuse_in_every_dialect(prefix: str) -> None:
    names = [f"single_transformer_blocks.7.attn.to_{part}" for part in "qkv"]
    names += ["single_transformer_blocks.7.proj_mlp", "transformer_blocks.0.attn.to_out.0", "norm_out.linear"]
    rows = [HIDDEN] * 3 + [4 * HIDDEN, HIDDEN, 2 * HIDDEN]
    state, deltas = {}, []
    for seed, (name, height) in enumerate(zip(names, rows, strict=True)):
        down, up = pair(height, HIDDEN, seed)
        module = prefix + (name if prefix.endswith(".") else name.replace(".", "_"))
        state |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        deltas.append(up @ down)
    branches = to_file_layout(HUNYUAN_VIDEO, parse_lora(state), HIDDEN)
    torch.testing.assert_close(branches["single_blocks.7.linear1"].delta(1.0), torch.cat(deltas[:4]))
    torch.testing.assert_close(branches["double_blocks.0.img_attn_proj"].delta(1.0), deltas[4])
    swapped = torch.cat([deltas[5][HIDDEN:], deltas[5][:HIDDEN]])
    torch.testing.assert_close(branches["final_layer.adaLN_modulation.1"].delta(1.0), swapped)


def test_fused_projections_of_diffusers_keep_their_rank() -> None:
    down, up = pair(3 * HIDDEN, HIDDEN, 0)
    single_down, single_up = pair(3 * HIDDEN, HIDDEN, 1)
    state = {
        "transformer.transformer_blocks.0.attn.to_qkv.lora_A.weight": down,
        "transformer.transformer_blocks.0.attn.to_qkv.lora_B.weight": up,
        "transformer.single_transformer_blocks.0.attn.to_qkv.lora_A.weight": single_down,
        "transformer.single_transformer_blocks.0.attn.to_qkv.lora_B.weight": single_up,
    }
    branches = to_file_layout(HUNYUAN_VIDEO, parse_lora(state), HIDDEN)
    assert branches["double_blocks.0.img_attn_qkv"].rank == RANK
    torch.testing.assert_close(branches["double_blocks.0.img_attn_qkv"].delta(1.0), up @ down)
    expected = torch.cat([single_up @ single_down, torch.zeros(4 * HIDDEN, HIDDEN)])
    torch.testing.assert_close(branches["single_blocks.0.linear1"].delta(1.0), expected)


def test_loras_of_wans_fused_projections_are_what_diffusers_and_peft_compute() -> None:
    """Our merged weights equal the library ones: diffusers fuses the projections and peft merges a LoRA into them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=HIDDEN, num_layers=1, text_dim=32, ffn_dim=64, image_dim=48,
            in_channels=36, out_channels=16, freq_dim=32, added_kv_proj_dim=HIDDEN,
        )  # fmt: skip
        before = {key: value.clone() for key, value in network.state_dict().items()}
        for module in network.modules():
            if hasattr(module, "fuse_projections"):
                module.fuse_projections()
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=r".*(to_qkv|to_kv|to_added_kv)", init_lora_weights=False
        )
        inject_adapter_in_model(config, network)
    state = {f"transformer.{k}": v.clone() for k, v in network.state_dict().items() if ".lora_" in k}
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": ALPHA, "transformer.r": RANK})}
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
    branches = to_file_layout(WAN, parse_lora(state, metadata), HIDDEN)
    assert len(branches) == 7
    base = diffusers_to_file(WAN, before)
    block = network.blocks[0]
    fused = {
        ("self_attn.q", "self_attn.k", "self_attn.v"): block.attn1.to_qkv,
        ("cross_attn.k", "cross_attn.v"): block.attn2.to_kv,
        ("cross_attn.k_img", "cross_attn.v_img"): block.attn2.to_added_kv,
    }
    for names, layer in fused.items():
        keys = [f"blocks.0.{name}" for name in names]
        got = torch.cat([base[f"{key}.weight"] + branches[key].delta(1.0) for key in keys])
        torch.testing.assert_close(got, layer.get_base_layer().weight.detach())


def test_alpha_of_diffusers_metadata() -> None:
    config = {
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"blocks.1.ffn.0": 3.0, "attn2.*": 5},
        "transformer.use_rslora": False,
    }
    alpha = stated_alpha({"lora_adapter_metadata": json.dumps(config)}, "x")
    assert [alpha(name, 4) for name in ("blocks.0.ffn.0", "blocks.1.ffn.0", "blocks.2.attn2.to_q")] == [8, 3, 5]
    stabilised = stated_alpha({"lora_adapter_metadata": json.dumps(config | {"transformer.use_rslora": True})}, "x")
    assert stabilised("blocks.0.ffn.0", 4) == 16  # alpha / rank is then 8 / sqrt(4)
    assert stated_alpha({}, "x")("a", 4) is None
    with pytest.raises(CheckpointError, match=r"metadata in x .*diffusers"):
        stated_alpha({"lora_adapter_metadata": "{"}, "x")


def test_full_differences_of_step_distilled_loras(tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    table = torch.randn(1, 6, HIDDEN, generator=torch.Generator().manual_seed(2))
    state = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": down,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": up,
        "diffusion_model.blocks.0.self_attn.q.diff_b": vector,
        "diffusion_model.blocks.0.norm3.diff": vector.clone(),
        "diffusion_model.blocks.0.diff_m": table,
        "diffusion_model.blocks.0.strange.diff": vector.clone(),
    }
    path = tmp_path / "step.safetensors"
    save_file(state, path)
    lora = load_lora_for(wan.ARCHITECTURE, path, HIDDEN)
    assert set(lora.differences) == {"blocks.0.self_attn.q.bias", "blocks.0.norm3.weight", "blocks.0.modulation"}
    assert torch.equal(lora.differences["blocks.0.modulation"], table)
    assert lora.misses == ("blocks.0.strange (weight)",)
    # A LoRA that is merged into the weights must be complete.
    with pytest.raises(CheckpointError, match=r"step\.safetensors .* 4 of 6 .*lora_A/lora_B"):
        load_lora(path, HIDDEN)


def test_files_of_full_differences_only(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    q, v, norm = (torch.randn(*size, generator=generator) for size in ((128, 8), (128, 8), (128,)))
    save_file(
        {
            "diffusion_model.double_blocks.0.img_attn.proj.diff": q,
            "diffusion_model.double_blocks.0.img_attn.proj.diff_b": norm,
            "diffusion_model.double_blocks.0.img_attn.norm.query_norm.w_norm": norm.clone(),
            "transformer.transformer_blocks.1.attn.to_q.diff": q.clone(),
            "transformer.transformer_blocks.1.attn.to_v.diff": v,
            "transformer.transformer_blocks.1.attn.to_q.diff_b": norm.clone(),
            "transformer.transformer_blocks.2.attn.to_qkv.diff": torch.cat([q, v, q]),
            "transformer.norm_out.linear.diff": torch.cat([q, v]),
            "transformer.transformer_blocks.3.attn.to_q.diff": q[:64].clone(),
        },
        tmp_path / "full.safetensors",
    )
    lora = load_lora_for(hunyuan_video.ARCHITECTURE, tmp_path / "full.safetensors", 128)
    zeros, vector = torch.zeros(128, 8), torch.zeros(128)
    expected = {
        "double_blocks.0.img_attn_proj.weight": q,
        "double_blocks.0.img_attn_proj.bias": norm,
        "double_blocks.0.img_attn_q_norm.weight": norm,
        "double_blocks.1.img_attn_qkv.weight": torch.cat([q, zeros, v]),
        "double_blocks.1.img_attn_qkv.bias": torch.cat([norm, vector, vector]),
        "double_blocks.2.img_attn_qkv.weight": torch.cat([q, v, q]),
        "final_layer.adaLN_modulation.1.weight": torch.cat([v, q]),
    }
    assert lora.differences.keys() == expected.keys()
    assert all(torch.equal(lora.differences[key], value) for key, value in expected.items())
    assert lora.misses == ("transformer_blocks.3.attn.to_q (weight)",)
    assert is_lora(tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match=r"full\.safetensors .* 9 of 9 .*full difference"):
        load_lora(tmp_path / "full.safetensors", 128)
    with pytest.raises(CheckpointError, match=r"matches 0/7 modules of this Wan 2\.1 .*LoRA for HunyuanVideo"):
        load_lora_for(wan.ARCHITECTURE, tmp_path / "full.safetensors", 128)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"img_in.proj.diff": torch.full((2, 2), float("nan"))}, r"difference for img_in\.proj .*finite"),
        ({"img_in.proj.diff": torch.ones(2, 2, dtype=torch.int8)}, r"difference for img_in\.proj"),
        ({"img_in.proj.set_weight": torch.ones(2, 2)}, r"img_in\.proj\.set_weight"),
        ({"img_in.proj.lora_E": torch.ones(2, 1)}, "AdaLoRA"),
        (
            {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.ones(2, 2), "a.diff": torch.ones(2, 2)},
            "changes a twice",
        ),
        ({"a.alpha": torch.ones(())}, "only alphas"),
    ],
)
def test_differences_that_cannot_be_applied_are_named(change: dict[str, Tensor], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_lora(change)


@pytest.mark.parametrize(
    "halves",
    [
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_A", ".lora_B"),
    ],
)
def test_every_name_of_a_pair_marks_a_lora(halves: tuple[str, str], tmp_path: Path) -> None:
    name = "diffusion_model.double_blocks.0.img_attn_proj"
    state = {f"{name}{halves[0]}": torch.ones(4, 128), f"{name}{halves[1]}": torch.ones(128, 4)}
    save_file(state, tmp_path / "a.safetensors")
    assert is_lora(tmp_path / "a.safetensors")
    assert load_lora(tmp_path / "a.safetensors", 128).branches.keys() == {"double_blocks.0.img_attn_proj"}
    with pytest.raises(CheckpointError, match=r"a\.safetensors is a LoRA"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_loras_of_the_patch_embedding_are_matrices(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(RANK, 36, 1, 2, 2, generator=generator)
    up = torch.randn(HIDDEN, RANK, 1, 1, 1, generator=generator)
    state = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    branch = parse_lora(state)["patch_embedding"]
    expected = torch.einsum("or,rcthw->octhw", up[:, :, 0, 0, 0], down)
    torch.testing.assert_close(branch.delta(1.0).reshape(expected.shape), expected)


def test_unmatched_modules_are_named_and_no_match_is_an_error(tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    good = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    bad = {"lora_te1_mlp_fc1.lora_down.weight": down.clone(), "lora_te1_mlp_fc1.lora_up.weight": up.clone()}
    bad["note"] = torch.zeros(1)
    save_file(good | bad, tmp_path / "partly.safetensors")
    lora = load_lora_for(wan.ARCHITECTURE, tmp_path / "partly.safetensors", HIDDEN)
    assert lora.misses == ("lora_te1_mlp_fc1", "note")
    assert lora.origins == {"blocks.0.self_attn.q": ("blocks.0.self_attn.q",)}
    with pytest.raises(CheckpointError, match=r"partly\.safetensors .* 1 of 5 .*\(note\)"):
        load_lora(tmp_path / "partly.safetensors", HIDDEN)
    with pytest.raises(CheckpointError, match=r"partly\.safetensors .*0/2 .*HunyuanVideo.*Wan 2\.1"):
        load_lora_for(hunyuan_video.ARCHITECTURE, tmp_path / "partly.safetensors", HIDDEN)


@pytest.mark.parametrize("name", ["strange_unet_blocks_0_attn", "lora_te1_mlp_fc1", "model.layers.0.q_proj"])
def test_names_that_no_family_has_are_shown(name: str, tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    state = {}
    for number in range(4):
        state |= {f"{name}{number}.lora_down.weight": down.clone(), f"{name}{number}.lora_up.weight": up.clone()}
    save_file(state, tmp_path / "strange.safetensors")
    shown = ", ".join(rf"\S*{name[6:]}{number}" for number in range(3))
    message = rf"strange\.safetensors .*0/4 .*{shown} and 1 more"
    for architecture in (wan.ARCHITECTURE, hunyuan_video.ARCHITECTURE):
        with pytest.raises(CheckpointError, match=message) as raised:
            load_lora_for(architecture, tmp_path / "strange.safetensors", HIDDEN)
        assert "another model" not in str(raised.value)
    with pytest.raises(CheckpointError, match=message):
        load_lora(tmp_path / "strange.safetensors", HIDDEN)


def test_a_lora_of_another_width_is_told_from_unknown_names(tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    prefix = "transformer.single_transformer_blocks.0.attn.to_q"
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"wide\.safetensors .*0/1 .*HunyuanVideo .*256"):
        load_lora_for(hunyuan_video.ARCHITECTURE, tmp_path / "wide.safetensors", 2 * HIDDEN)


def test_a_bias_next_to_a_pair_is_unknown_and_not_half_a_pair(tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    state = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    parsed = read_lora(state | {"blocks.0.self_attn.q.lora_B.bias": torch.zeros(HIDDEN)})
    assert parsed.unknown == ("blocks.0.self_attn.q.lora_B.bias",)


def test_pickled_loras_are_read_safely(tmp_path: Path) -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    pairs = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    torch.save({"state_dict": pairs}, tmp_path / "lora.pt")
    assert set(load_lora_for(wan.ARCHITECTURE, tmp_path / "lora.pt", HIDDEN).branches) == {"blocks.0.self_attn.q"}
    torch.save({"state_dict": pairs, "code": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt .*pickle.*\.safetensors"):
        load_lora_for(wan.ARCHITECTURE, tmp_path / "bad.pt", HIDDEN)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("a.dora_scale", "is a DoRA adapter"),
        ("a.lora_magnitude_vector.weight", "is a DoRA adapter"),
        ("b.lokr_w1", "is a LoKr adapter"),
        ("b.hada_w1_a", "is a LoHa adapter"),
        ("transformer.a.lora_A.weight", "changes a twice"),
        ("a.lora_A.other.weight", "changes a twice"),
    ],
)
def test_unsupported_adapters_and_repeated_modules_are_refused(extra: str, message: str) -> None:
    pairs = {"a.lora_A.weight": torch.zeros(4, 8), "a.lora_B.weight": torch.zeros(8, 4)}
    with pytest.raises(CheckpointError, match=message):
        read_lora(pairs | {extra: torch.zeros(4, 8)})


def test_two_names_of_one_module_are_refused() -> None:
    down, up = pair(HIDDEN, HIDDEN, 0)
    state = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    state |= {"blocks.0.attn1.to_q.lora_A.weight": down, "blocks.0.attn1.to_q.lora_B.weight": up}
    with pytest.raises(CheckpointError, match=r"blocks\.0\.self_attn\.q .*blocks\.0\.attn1\.to_q"):
        to_file_layout(WAN, parse_lora(state), HIDDEN)


def test_every_module_of_every_family_survives_underscores() -> None:
    for layout in (HUNYUAN_VIDEO, WAN):
        for module in layout.modules:
            for name in (module.file, *module.parts):
                numbered = name.replace("{i}", "11")
                assert dotted(layout, numbered.replace(".", "_")) == numbered

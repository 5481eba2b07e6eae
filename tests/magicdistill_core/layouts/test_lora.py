import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from magicdistill_core.branch import LowRank, merge
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import NetworkShape
from magicdistill_core.layouts.dialects import lora_part
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import lora_state, to_diffusers_layout, to_file_layout
from magicdistill_core.layouts.lora_tensors import parse_lora
from magicdistill_core.layouts.modules import diffusers_to_file
from train.networks.network import build_network

HIDDEN, RANK, ALPHA = 128, 3, 5.0
SHAPE = NetworkShape(33, HIDDEN, 1, 2, 1, 16, 24, guidance_embed=False)
ALL_LINEARS = r".*(attn\.(to_|add_)|ff|proj_mlp|proj_out|linear|proj_in).*"
SOME = r".*(transformer_blocks\.0\.attn\.to_q|1\.attn\.to_v|0\.proj_mlp|norm_out\.linear)"


def linears(network: HunyuanVideoTransformer3DModel, pattern: str) -> str:
    import re

    names = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and re.fullmatch(pattern, n)]
    return "|".join(re.escape(name) for name in names)


def trained_by_peft(pattern: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return base weights, LoRA tensors with peft's names, and the weights merged by peft, in diffusers' names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(SHAPE).double()
        base = {key: value.clone() for key, value in network.state_dict().items()}
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linears(network, pattern), init_lora_weights=False)
        inject_adapter_in_model(config, network)
    lora = {
        f"transformer.{key.replace('.default.', '.')}": value.clone()
        for key, value in network.state_dict().items()
        if ".lora_" in key
    }
    # peft stores alpha in its configuration, not in a tensor.
    lora |= {
        key.replace("lora_A.weight", "alpha"): torch.tensor(ALPHA)
        for key in list(lora)
        if key.endswith("lora_A.weight")
    }
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
    merged = {
        key.replace(".base_layer.", "."): value for key, value in network.state_dict().items() if ".lora_" not in key
    }
    return base, lora, merged


@pytest.mark.parametrize("pattern", [ALL_LINEARS, SOME], ids=["all linears", "a part of fused modules"])
def test_fused_branches_merge_to_what_peft_merges(pattern: str) -> None:
    base, lora, merged = trained_by_peft(pattern)
    branches = to_file_layout(HUNYUAN_VIDEO, parse_lora(lora), HIDDEN)
    expected = diffusers_to_file(HUNYUAN_VIDEO, merged)
    got = merge(diffusers_to_file(HUNYUAN_VIDEO, base), branches, 1.0)
    assert got.keys() == expected.keys()
    changed = 0
    for key, value in expected.items():
        assert torch.allclose(got[key], value, atol=2e-6), key  # merge() sums in float32
        changed += not torch.equal(value, diffusers_to_file(HUNYUAN_VIDEO, base)[key])
    assert changed == len(branches) > 3


def test_fused_ranks_are_the_sum_of_the_parts() -> None:
    _, lora, _ = trained_by_peft(ALL_LINEARS)
    branches = to_file_layout(HUNYUAN_VIDEO, parse_lora(lora), HIDDEN)
    assert branches["double_blocks.0.img_attn_qkv"].rank == 3 * RANK
    assert branches["single_blocks.1.linear1"].rank == 4 * RANK
    assert branches["single_blocks.1.linear2"].rank == RANK
    assert branches["single_blocks.1.linear1"].factor == pytest.approx(ALPHA / RANK)


def test_there_and_back_keeps_every_delta() -> None:
    _, lora, _ = trained_by_peft(ALL_LINEARS)
    split = parse_lora(lora)
    fused = to_file_layout(HUNYUAN_VIDEO, split, HIDDEN)
    back = to_diffusers_layout(HUNYUAN_VIDEO, fused, HIDDEN)
    assert back.keys() == split.keys()
    for name, branch in split.items():
        assert torch.allclose(back[name].delta(1.0), branch.delta(1.0), atol=1e-6), name
    again = to_file_layout(HUNYUAN_VIDEO, fused, HIDDEN)  # already in the file layout: unchanged
    assert all(again[name] is fused[name] for name in fused)


def test_a_written_lora_keeps_alpha_and_is_read_back() -> None:
    branch = LowRank(torch.ones(2, HIDDEN), torch.ones(3 * HIDDEN, 2), alpha=0.25)
    state = lora_state({"double_blocks.0.txt_attn_qkv": branch})
    assert set(state) == {
        f"diffusion_model.double_blocks.0.txt_attn_qkv.{part}" for part in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    back = parse_lora(state)["double_blocks.0.txt_attn_qkv"]
    assert (back.alpha, back.rank) == (0.25, 2)
    assert torch.equal(back.up, branch.up)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("diffusion_model.a.b.lora_A.weight", ("diffusion_model.", "a.b", "down")),
        ("transformer.a.b.lora_B.weight", ("transformer.", "a.b", "up")),
        ("base_model.model.transformer.a.lora_down.weight", ("base_model.model.transformer.", "a", "down")),
        ("a.lora_up.weight", ("", "a", "up")),
        ("a.alpha", ("", "a", "alpha")),
        ("a.weight", None),
        ("transformer_blocks.0.lora_A.weight", ("", "transformer_blocks.0", "down")),
    ],
)
def test_dialects_of_names(key: str, parts: tuple[str, str, str] | None) -> None:
    assert lora_part(key) == parts


def test_alpha_defaults_to_the_rank() -> None:
    pair = {"a.lora_A.weight": torch.zeros(4, 8), "a.lora_B.weight": torch.zeros(8, 4)}
    assert parse_lora(pair)["a"].alpha == 4.0
    assert parse_lora(pair | {"a.alpha": torch.tensor(2.0)})["a"].alpha == 2.0


def test_other_files_and_loras_without_a_match_are_refused() -> None:
    pair = {"a.lora_A.weight": torch.zeros(4, 8), "a.lora_B.weight": torch.zeros(8, 4)}
    with pytest.raises(CheckpointError, match="no tensors"):
        parse_lora({})
    with pytest.raises(CheckpointError, match=r"1 of 3 tensors.*img_in\.proj\.weight"):
        parse_lora(pair | {"img_in.proj.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"one half .*: a\."):
        parse_lora({"a.lora_A.weight": torch.zeros(4, 8)})
    with pytest.raises(CheckpointError, match=r"1 of 1 LoRA modules .*: a\."):
        to_file_layout(HUNYUAN_VIDEO, parse_lora(pair), HIDDEN)
    with pytest.raises(CheckpointError, match=r"LoRA module a .*family"):
        to_diffusers_layout(HUNYUAN_VIDEO, parse_lora(pair), HIDDEN)
    wide = {"transformer_blocks.0.attn.to_q": LowRank(torch.zeros(2, 256), torch.zeros(256, 2), 2.0)}
    with pytest.raises(CheckpointError, match="256 rows, expected 128"):
        to_file_layout(HUNYUAN_VIDEO, wide, HIDDEN)

"""Quantised files are read as the file's numbers times their scales, in the dtype of the file's other weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.dequantise import dequantised
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families import choose_family
from magicdistill_core.families.base import Family
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from magicdistill_core.int8 import QUANTISATION_KEY
from magicdistill_core.quantise import quantise_file
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt, wan_shape

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
RECIPE = Recipe(kind="generator", steps=4, shift=5.0, width=96, height=96, frames=17, fps=24.0)
ROWS, COLUMNS = 6, 64
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, ROWS)[:, None]
TOP = WEIGHT.abs().max()
PER_ROW = WEIGHT.abs().amax(1, keepdim=True)
REST = {"a.bias": torch.ones(ROWS), "b.weight": WEIGHT}


def described(layer: dict[str, Any]) -> dict[str, str]:
    """The text entries of a file that describe the layer `a`."""
    return {QUANTISATION_KEY: json.dumps({"layers": {"a": layer}})}


def stored(dtype: torch.dtype, scale: Tensor) -> dict[str, Tensor]:
    """The layer `a` in 8 bits, with its scale and other tensors."""
    q = WEIGHT / scale
    return REST | {"a.weight": q.round().to(dtype) if dtype == torch.int8 else q.to(dtype), "a.weight_scale": scale}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "shape"), [(CONCAT, hunyuan_shape()), (IMAGE_TO_VIDEO, wan_shape())], ids=["HunyuanVideo", "Wan"]
)
def test_an_int8_file_is_the_plain_file_with_rounded_weights(
    tmp_path: Path, family: Family, shape: Any, dtype: torch.dtype
) -> None:
    recipe, prompt = RECIPE.model_copy(update={"family": family.architecture.name}), random_prompt()
    save_checkpoint(tmp_path / "plain.safetensors", file_state(shape, family), recipe, prompt, dtype)
    done = quantise_file(tmp_path / "plain.safetensors", tmp_path / "int8.safetensors")
    plain, back = load_checkpoint(tmp_path / "plain.safetensors"), load_checkpoint(tmp_path / "int8.safetensors")
    numbers = load_file(tmp_path / "int8.safetensors")  # read by safetensors itself
    assert len(done.errors) > 3
    for key, exact in plain.state.items():
        layer = key.removesuffix(".weight")
        rounded = (numbers[key] * numbers[f"{key}_scale"]).to(dtype) if layer in done.errors else exact
        assert torch.equal(back.state[key], rounded), key
    assert back.state.keys() == plain.state.keys()
    assert (back.recipe, back.shape, back.family()) == (plain.recipe, plain.shape, plain.family())
    assert choose_family(back.architecture, shape.in_channels, None, None, "") is family
    assert torch.equal(back.null_prompt.text_states, plain.null_prompt.text_states)
    shapes = load_checkpoint(tmp_path / "int8.safetensors", "meta").state
    assert all(value.is_meta for value in shapes.values())
    assert {k: (v.shape, v.dtype) for k, v in shapes.items()} == {k: (v.shape, v.dtype) for k, v in plain.state.items()}


def test_pieces_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dequantised(stored(torch.int8, PER_ROW / 127), {}, "file")["a.weight"]
    monkeypatch.setattr("magicdistill_core.dequantise.VALUES_AT_A_TIME", 2 * COLUMNS)
    assert torch.equal(dequantised(stored(torch.int8, PER_ROW / 127), {}, "file")["a.weight"], whole)


@pytest.mark.parametrize(
    ("dtype", "scale", "texts", "error"),
    [
        (torch.int8, PER_ROW / 127, {}, 0.0),
        (torch.int8, (PER_ROW / 127)[:, 0], {}, 0.0),
        (torch.int8, TOP / 127, described({"format": "int8_tensorwise"}), 0.0),
        (torch.int8, PER_ROW / 127, described({"format": "int8_tensorwise", "convrot": False}), 0.0),
        (E4M3, TOP / 448, described({"format": "float8_e4m3fn"}), 0.0),
        (E5M2, TOP / 57344, {}, 0.0),
        (E4M3, PER_ROW / 448, {}, 0.01),  # rounded again, to int8, as in ComfyUI
    ],
)
def test_weights_are_their_numbers_times_the_scale(
    dtype: torch.dtype, scale: Tensor, texts: dict[str, str], error: float
) -> None:
    wide = scale[:, None] if scale.shape == (ROWS,) else scale
    state = stored(dtype, wide) | {"a.weight_scale": scale}
    expected = state["a.weight"].float() * wide
    out = dequantised(state, texts, "file")
    assert out.keys() == REST.keys() | {"a.weight"}
    assert out["a.weight"].dtype == torch.float32
    assert (out["a.weight"] - expected).norm() <= error * expected.norm()
    assert all(torch.equal(out[key], REST[key]) for key in REST)


def test_the_dtype_is_that_of_most_other_weights() -> None:
    small = {"a.weight": WEIGHT.to(E4M3), "c.weight": WEIGHT.to(E5M2)}
    mixed = small | {
        "b.weight": WEIGHT.half(),
        "b.bias": torch.ones(3),
        "null_prompt.text_states": torch.ones(1, 900, 9),
    }
    out = dequantised(mixed, {}, "file")
    assert (out["a.weight"].dtype, out["c.weight"].dtype, out["b.bias"].dtype) == (torch.float16,) * 2 + (
        torch.float32,
    )
    assert torch.equal(out["a.weight"], WEIGHT.to(E4M3).half())
    assert dequantised(small, {}, "file")["a.weight"].dtype == torch.bfloat16


def test_plain_files_are_not_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert dequantised(REST, {}, "file") == REST
    assert not caplog.messages
    dequantised(stored(torch.int8, PER_ROW / 127), {}, "file")
    assert caplog.messages == ["file: 1 weights in int8 were converted to float32; their rounding errors remain"]


ROTATED = {"format": "int8_tensorwise", "params": {"convrot": True}}


@pytest.mark.parametrize(
    ("tensors", "texts", "named"),
    [
        ({}, described(ROTATED), r"format int8_tensorwise with rotation"),
        ({}, described({"format": "nvfp4"}), r"format nvfp4.*int8_tensorwise"),
        ({}, described({"format": "float8_e4m3fn"}), r"format float8_e4m3fn"),
        ({"a.pre_quant_scale": TOP}, described({"format": "int8_tensorwise"}), r"tensorwise with smoothing"),
        ({"a.weight_scale": torch.ones(3)}, described({"format": "int8_tensorwise"}), r"shape \[3\].*\[6, 64\]"),
        ({"a.comfy_quant": torch.tensor(list(b"{no json"), dtype=torch.uint8)}, {}, r"description .*a is damaged"),
        ({"a.comfy_quant": torch.tensor(list(b"[1]"), dtype=torch.uint8)}, {}, r"description .*a is damaged"),
        ({"c.weight": torch.ones(4, 4, dtype=torch.int8)}, {}, r"int8 without the scales .*c\.weight"),
        ({"c.weight._data": torch.ones(4, 4, dtype=torch.int8)}, {}, "quanto"),
    ],
)
def test_what_only_comfyui_computes_with_is_refused_with_advice(
    tensors: dict[str, Tensor], texts: dict[str, str], named: str
) -> None:
    state = stored(torch.int8, PER_ROW / 127) | tensors
    with pytest.raises(CheckpointError, match=rf"(?s)file.*{named}.*bf16"):
        dequantised(state, texts, "file")


def test_a_described_layer_needs_its_scale() -> None:
    state = stored(torch.int8, PER_ROW / 127)
    state.pop("a.weight_scale")
    with pytest.raises(CheckpointError, match=r"file holds no scale for a\.weight"):
        dequantised(state, described({"format": "int8_tensorwise"}), "file")


def test_shapes_of_other_tools_are_refused_too() -> None:
    state = {"a.qweight": torch.empty(4, 4, dtype=torch.int8, device="meta"), "a.qzeros": torch.empty(4, device="meta")}
    with pytest.raises(CheckpointError, match="GPTQ"):
        dequantised(state, {}, "file")

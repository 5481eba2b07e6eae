"""Scales that nothing in a file describes: they are described to ComfyUI, or the file is refused."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError
from magicdistill_core.int8 import QUANTISATION_KEY
from magicdistill_core.quantised_files import describe_quantised
from magicdistill_core.soundness import check_number_types

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ROWS, COLUMNS = 6, 64
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, ROWS)[:, None]


def quantised(dtype: torch.dtype, scale: Tensor) -> Tensor:
    """The weight divided by a scale that broadcasts, in a small dtype."""
    q = WEIGHT / scale
    return q.round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else q.to(dtype)


def layer_of(state: dict[str, Tensor]) -> tuple[dict[str, Any], Tensor]:
    """The description of the layer `a` and its weight as ComfyUI computes it: the numbers times the scale."""
    layer = json.loads(bytes(state["a.comfy_quant"].tolist()))
    assert (
        state["a.weight"].dtype
        == {"int8_tensorwise": torch.int8, "float8_e4m3fn": E4M3, "float8_e5m2": E5M2}[layer["format"]]
    )
    scale = state["a.weight_scale"]
    # On GPUs, ComfyUI's fp8 kernels read one scale only.
    assert scale.numel() == 1 or (layer["format"] == "int8_tensorwise" and scale.shape == (ROWS, 1))
    return layer, state["a.weight"].float() * scale


TOP = WEIGHT.abs().max()
PER_ROW = WEIGHT.abs().amax(1, keepdim=True)
PER_BLOCK = WEIGHT.reshape(ROWS, 2, -1).abs().amax(-1, keepdim=True)


@pytest.mark.parametrize(
    ("dtype", "name", "scale", "flag"),
    [
        (E4M3, "weight_scale", PER_ROW / 448, None),  # LightX2V's converter
        (torch.int8, "weight_scale", PER_ROW / 127, None),
        (torch.int8, "weight_scale", (PER_ROW / 127)[:, 0], None),
        (torch.int8, "weight_scale", TOP / 127, None),
        (E4M3, "weight_scale", (TOP / 448).reshape(1, 1), None),
        (E4M3, "scale_weight", TOP / 448, None),
        (E4M3, "scale_weight", TOP / 448, torch.zeros(2, dtype=E4M3)),
        (E5M2, "scale_weight", TOP / 57344, torch.zeros(2, dtype=E5M2)),  # Kijai's fp8_e5m2_scaled
        (E4M3, "scale_weight", PER_BLOCK / 448, torch.zeros(1, dtype=E4M3)),  # musubi-tuner
        (E4M3, "weight_scale_inv", TOP / 448, None),
    ],
)
def test_undescribed_scales_are_described(dtype: torch.dtype, name: str, scale: Tensor, flag: Tensor | None) -> None:
    wide = scale.repeat_interleave(COLUMNS // 2, 1)[..., 0] if scale.ndim == 3 else scale
    wide = wide[:, None] if wide.shape == (ROWS,) else wide
    state = {"a.weight": quantised(dtype, wide), f"a.{name}": scale, "a.bias": torch.ones(ROWS), "b.weight": WEIGHT}
    if flag is not None:
        state["scaled_fp8"] = flag
    described = describe_quantised(state, {}, "file")
    layer, weight = layer_of(described.state)
    stored = state["a.weight"].float() * wide
    if described.converted:
        assert (weight - stored).norm() < 0.01 * stored.norm()
    else:
        torch.testing.assert_close(weight, stored)
    assert described.converted == (dtype == E4M3 and scale.numel() > 1)
    assert layer.get("full_precision_matrix_mult", False) == (flag is None or len(flag) == 2 or scale.numel() > 1)
    assert described.state.keys() == {"a.weight", "a.weight_scale", "a.comfy_quant", "a.bias", "b.weight"}
    check_number_types(described.state, "file")


def test_the_scale_of_inputs_is_kept_where_inputs_are_rounded() -> None:
    state = {"a.weight": quantised(E4M3, TOP / 448), "a.scale_weight": TOP / 448, "a.scale_input": torch.tensor(0.5)}
    kept = describe_quantised(state | {"scaled_fp8": torch.zeros(0, dtype=E4M3)}, {}, "file").state
    assert (kept["a.input_scale"], layer_of(kept)[0]) == (0.5, {"format": "float8_e4m3fn"})
    assert not [key for key in describe_quantised(state, {}, "file").state if "input" in key]


@pytest.mark.parametrize("name", ["a", "model.diffusion_model.a"])
def test_what_comfyui_describes_stays(name: str) -> None:
    state = {"a.weight": quantised(torch.int8, TOP / 127), "a.weight_scale": TOP / 127}
    layer = {"format": "int8_tensorwise", "convrot": True}
    described = describe_quantised(state, {QUANTISATION_KEY: json.dumps({"layers": {name: layer}})}, "file")
    assert layer_of(described.state)[0] == layer
    assert describe_quantised(described.state, {}, "file").state.keys() == described.state.keys()


def test_unquantised_layers_may_have_a_scale_of_one() -> None:
    state = {"a.weight": WEIGHT, "a.scale_weight": torch.ones(()), "scaled_fp8": torch.zeros(2, dtype=E4M3)}
    assert describe_quantised(state, {}, "file").state.keys() == {"a.weight"}
    with pytest.raises(CheckpointError, match=r"file .*a\.scale_weight"):
        describe_quantised(state | {"a.scale_weight": torch.tensor(2.0)}, {}, "file")


BYTES = torch.ones(ROWS, COLUMNS, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"a.weight": BYTES, "a.weight.absmax": PER_ROW, "a.weight.quant_map": PER_ROW}, r"bitsandbytes .*a\.weight"),
        ({"a.weight": quantised(torch.int8, PER_ROW), "a.SCB": PER_ROW}, "bitsandbytes"),
        ({"a.weight._data": BYTES, "a.weight._scale": PER_ROW}, "quanto"),
        ({"a._weight_qdata": BYTES, "a._weight_scale": PER_ROW}, "torchao"),
        ({"a.qweight": BYTES, "a.wscales": PER_ROW, "a.smooth_factor": PER_ROW}, "nunchaku"),
        ({"a.qweight": BYTES, "a.qzeros": BYTES, "a.scales": PER_ROW}, "GPTQ"),
        ({"a.weight": BYTES, "a.weight_scale": PER_ROW}, r"a\.weight_scale .*\[6, 1\].*\[6, 64\] in uint8"),
        ({"a.weight": BYTES, "a.weight_scale": PER_ROW.to(E4M3), "a.weight_scale_2": TOP}, r"a\.weight_scale"),
        ({"a.weight": quantised(E4M3, TOP), "a.weight_scale": torch.ones(3, 1)}, r"\[3, 1\]"),
        ({"a.weight": quantised(E4M3, TOP), "a.weight_scale_inv": torch.ones(2, 2)}, r"\[2, 2\]"),
        ({"a.weight_scale": TOP}, "no weight"),
        ({"a.weight": quantised(E4M3, TOP), "a.pre_quant_scale": TOP}, r"unknown quantiser .*a\.pre_quant_scale"),
        ({"a.weight": quantised(E4M3, TOP), "a.weight_scale": TOP, "a.scale_weight": TOP}, "two scales for a"),
    ],
)
def test_what_comfyui_cannot_compute_is_refused_with_advice(tensors: dict[str, Tensor], named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"(?s)file .*{named}.*bf16"):
        describe_quantised({key: value.clone() for key, value in tensors.items()}, {}, "file")


@pytest.mark.parametrize("text", ["{no json", "[]", "[" * 100_000, '{"layers": 3}', '{"format_version": "1.0"}'])
def test_a_damaged_description_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match=f"file .*{QUANTISATION_KEY}"):
        describe_quantised({"a.weight": WEIGHT}, {QUANTISATION_KEY: text}, "file")

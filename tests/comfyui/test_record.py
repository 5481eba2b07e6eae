"""The record names what made a video, and claims nothing about what other nodes have changed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from magicdistill_core.hashes import file_sha256
from magicdistill_core.pocket.files import FAKE_LORA, GENERATOR, TEACHER
from tests.makers import StockSide

pytestmark = pytest.mark.slow

UNKNOWN_LORA = {"name": None, "strength": None}
OWN = {"name": FAKE_LORA.name, "strength": 0.25}


def write_lora(path: Path) -> None:
    """Write a LoRA of one module of the pocket model, in ComfyUI's names."""
    out, width = load_file(GENERATOR)["single_blocks.0.linear2.weight"].shape
    name = "diffusion_model.single_blocks.0.linear2"
    save_file({f"{name}.lora_A.weight": torch.ones(4, width), f"{name}.lora_B.weight": torch.ones(out, 4)}, path)


@pytest.fixture(scope="module")
def records(
    stock_side: StockSide, tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Return the records of all runs by name."""
    folder = tmp_path_factory.mktemp("records")
    write_lora(folder / "stock.safetensors")
    write_lora(folder / "own.safetensors")
    save_file(load_file(FAKE_LORA), folder / FAKE_LORA.name)
    job = {"run": "records", "model": str(GENERATOR), "teacher": str(TEACHER), "loras": str(folder)}
    job |= {"fake": FAKE_LORA.name, "lora": str(folder / "stock.safetensors"), "generator": "own.safetensors"}
    network = tiny.network(tiny.shape(guidance_embed=True, in_channels=16), TOKEN_REPLACE)
    recipe = tiny.recipe("generator", i2v_mode="token_replace")
    tiny.write_model(folder / "replace.safetensors", network, recipe, tiny.prompt())
    (answer,) = stock_side([job | {"replace": str(folder / "replace.safetensors")}])
    return json.loads(bytes(answer["records"].tolist()).decode())


@pytest.mark.parametrize("name", ["plain", "merge 1", "shift", "fp8", "own lora", "own hook"])
def test_the_packs_own_changes_are_no_other_changes(name: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[name]
    assert record["sha256"] == file_sha256(GENERATOR)
    assert record["other_changes"] == record["notes"] == []
    assert UNKNOWN_LORA not in record["loras"]


def test_the_loras_of_this_pack_are_named(records: dict[str, dict[str, Any]]) -> None:
    assert records["own lora"]["loras"] == [OWN]
    assert records["own hook"]["loras"] == [{"name": "own.safetensors", "strength_per_step": [1, 0, 0, 0]}]
    assert (records["plain"]["weight_dtype"], records["fp8"]["weight_dtype"]) == ("default", "fp8_e4m3fn")


@pytest.mark.parametrize("name", ["merge 0", "merge 0.5"])
def test_a_merge_claims_no_file(name: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[name]
    unknown = ("checkpoint", "sha256", "weight_dtype", "kind", "loras")
    assert {key: record[key] for key in unknown} == dict.fromkeys(unknown)
    assert record["other_changes"] == [f"merged weights: {len(load_file(TEACHER)) - 2}"]
    assert "models were merged" in record["notes"][0]


@pytest.mark.parametrize(
    ("name", "known", "change"),
    [
        ("own and stock lora", [OWN], "patched weights: 1"),
        ("stock lora, then own", [{"name": "own.safetensors", "strength": 0.5}], "patched weights: 1"),
        ("bypass lora", [], "injection bypass_lora"),
        ("hook", [], "hooks in the conditioning: 1"),
        (
            "own and stock hook",
            [{"name": "own.safetensors", "strength_per_step": [1, 0, 0, 0]}],
            "hooks in the conditioning: 1",
        ),
        ("own hook removed", [], "hooks in the conditioning: 1"),
    ],
)
def test_loras_of_other_nodes_are_unknown(
    name: str, known: list[dict], change: str, records: dict[str, dict[str, Any]]
) -> None:
    record = records[name]
    assert record["loras"] == [*known, UNKNOWN_LORA]
    assert change in record["other_changes"]
    assert change in record["notes"][0]
    assert record["sha256"] == file_sha256(GENERATOR)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("eps", "object patch model_sampling"),
        ("dtype", "object patch manual_cast_dtype"),
        ("rescale", "model option sampler_cfg_function"),
        ("easycache", "wrapper easycache"),
        ("function wrapper", "model option model_function_wrapper"),
        ("attention patch", "transformer option patches"),
        ("control", "conditioning control"),
        ("mask", "noise mask"),
    ],
)
def test_other_changes_are_named(name: str, change: str, records: dict[str, dict[str, Any]]) -> None:
    assert change in records[name]["other_changes"]
    assert change in records[name]["notes"][0]
    assert records[name]["loras"] == []
    assert "conditioning strength" not in records[name]["other_changes"]


def test_the_corrections_of_token_replacement_are_the_packs_own(records: dict[str, dict[str, Any]]) -> None:
    assert records["token replace"]["other_changes"] == []


def test_a_model_of_another_loader_claims_nothing(records: dict[str, dict[str, Any]]) -> None:
    record = records["stock loader"]
    assert (record["checkpoint"], record["sha256"]) == (None, None)
    assert record["loras"] == [UNKNOWN_LORA]

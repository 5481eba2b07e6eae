from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magicdistill_core.safetensors_file
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, parse_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.lora_file import is_lora
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_header, read_metadata, read_tensors
from magicdistill_core.streamed import Space, StreamedFile
from tests.makers import hunyuan_shape, random_prompt, seeded_network

SHAPE = hunyuan_shape(pooled_dim=24)
RECIPE = Recipe(kind="teacher", steps=28, shift=5.0, width=96, height=96, frames=17, fps=24.0)


@pytest.fixture(scope="module")
def network_state() -> dict[str, Tensor]:
    return dict(seeded_network(SHAPE).state_dict())


@pytest.fixture(scope="module")
def state(network_state: dict[str, Tensor]) -> dict[str, Tensor]:
    return diffusers_to_file(HUNYUAN_VIDEO, network_state)


@pytest.fixture
def prompt() -> NullPrompt:
    return random_prompt(pooled_dim=24)


def equal(checkpoint: Checkpoint, state: dict[str, Tensor]) -> bool:
    return checkpoint.state.keys() == state.keys() and all(torch.equal(checkpoint.state[k], state[k]) for k in state)


def test_a_checkpoint_is_written_and_read_back_equal(
    tmp_path: Path, state: dict[str, Tensor], prompt: NullPrompt
) -> None:
    path = tmp_path / "deep" / "teacher.safetensors"
    save_checkpoint(path, state, RECIPE, prompt)
    back = load_checkpoint(path)
    assert equal(back, state)
    assert (back.recipe, back.shape, back.source) == (RECIPE, SHAPE, "teacher.safetensors")
    assert back.null_prompt is not None
    assert torch.equal(back.null_prompt.text_states, prompt.text_states)
    assert torch.equal(back.null_prompt.pooled, prompt.pooled)
    assert torch.equal(load_null_prompt(path).pooled, prompt.pooled)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not is_lora(path)


def test_a_checkpoint_may_carry_no_null_prompt(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, RECIPE, None)
    assert load_checkpoint(path).null_prompt is None
    with pytest.raises(CheckpointError, match=r"a\.safetensors .*null_prompt\.text_states"):
        load_null_prompt(path)


def test_weights_get_the_requested_dtype_and_the_prompt_keeps_its_own(
    tmp_path: Path, state: dict[str, Tensor], prompt: NullPrompt
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, RECIPE, prompt, torch.bfloat16)
    header = read_header(path)
    assert header["img_in.proj.weight"].dtype == "BF16"
    assert header["img_in.proj.weight"].shape == (128, 33, 1, 2, 2)
    assert header["null_prompt.pooled"].dtype == "F32"
    assert torch.equal(load_checkpoint(path).state["img_in.proj.weight"], state["img_in.proj.weight"].bfloat16())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.model.", "transformer.", ""])
def test_wrapped_names_are_read(prefix: str, state: dict[str, Tensor]) -> None:
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    extra = {"null_prompt.text_states": torch.ones(1, 1, 16), "null_prompt.pooled": torch.ones(1, 24)}
    checkpoint = parse_checkpoint(wrapped | extra, None, "x")
    assert equal(checkpoint, state)
    assert checkpoint.null_prompt is not None


def test_comfyuis_spelling_is_read(state: dict[str, Tensor]) -> None:
    renames = {"img_attn_qkv": "img_attn.qkv", "_mod.linear": "_mod.lin", "time_in.mlp.0": "time_in.in_layer"}
    spelt = {}
    for key, value in state.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        spelt[key] = value
    assert spelt.keys() != state.keys()
    assert equal(parse_checkpoint(spelt, None, "x"), state)


def test_a_diffusers_folder_in_shards_is_read(
    tmp_path: Path, network_state: dict[str, Tensor], state: dict[str, Tensor]
) -> None:
    keys = sorted(network_state)
    for number, part in enumerate((keys[::2], keys[1::2])):
        save_file({key: network_state[key] for key in part}, tmp_path / f"model-{number}.safetensors")
    assert equal(load_checkpoint(tmp_path), state)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty .*\.safetensors.*magicdistill export"):
        load_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_pickles_have_no_metadata_and_are_told_from_safetensors(tmp_path: Path, name: str, old: bool) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=rf"{name} .*pickle.*\.safetensors"):
        read_metadata(tmp_path / name)
    if name == "a.safetensors":
        with pytest.raises(CheckpointError, match=r"a\.safetensors .*pickle"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(tmp_path: Path, state: dict[str, Tensor], kept: int) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, RECIPE, None)
    path.write_bytes(path.read_bytes()[:kept])
    for read in (read_metadata, read_tensors, read_header, load_checkpoint, is_lora):
        with pytest.raises(CheckpointError, match=r"a\.safetensors .*truncated"):
            read(path)


def test_a_file_larger_than_memory_can_be_inspected(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, rows = tmp_path / "a.safetensors", 10**9
    spaces = {key: Space.of(value) for key, value in state.items()}
    with open(path, "wb") as file:
        # A sparse file of 2 TB, which uses no disk space.
        StreamedFile(file, spaces | {"null_prompt.text_states": Space(torch.float16, (1, rows, 1000))}, {"k": "v"})
    assert path.stat().st_size > 2 * 10**12
    assert read_metadata(path) == {"k": "v"}
    assert read_header(path)["null_prompt.text_states"].shape == (1, rows, 1000)
    assert not is_lora(path)
    checkpoint = load_checkpoint(path, "meta")
    assert all(value.is_meta and value.shape == state[key].shape for key, value in checkpoint.state.items())


def test_too_little_memory_is_not_reported_as_damage(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, RECIPE, None)
    opened = magicdistill_core.safetensors_file.safe_open

    def mapped(path: Path, framework: str, **settings: str) -> object:
        if framework == "pt":
            raise RuntimeError(f"unable to mmap 25626276520 bytes from file <{path}>: Cannot allocate memory (12)")
        return opened(path, framework, **settings)

    monkeypatch.setattr(magicdistill_core.safetensors_file, "safe_open", mapped)
    with pytest.raises(CheckpointError, match=r"^a\.safetensors .* GB, .*vm\.overcommit_memory=1.*int8"):
        load_checkpoint(path)
    torch.save({"module": state}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lambda *args, **settings: mapped(args[0], "pt"))
    with pytest.raises(CheckpointError, match=r"^a\.pt .* GB, .*vm\.overcommit_memory=1") as refused:
        load_checkpoint(tmp_path / "a.pt")
    assert "truncated" not in str(refused.value)


def test_other_families_are_refused(tmp_path: Path) -> None:
    wan = {f"blocks.0.self_attn.{part}.weight": torch.zeros(2, 2) for part in "qkvo"}
    save_file(wan, tmp_path / "wan.safetensors")
    with pytest.raises(CheckpointError, match=r"wan\.safetensors: .*HunyuanVideo.*k\.weight"):
        load_checkpoint(tmp_path / "wan.safetensors")


def test_incomplete_and_unknown_weights_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    partial = {key: value for key, value in state.items() if not key.startswith("final_layer.linear")}
    with pytest.raises(CheckpointError, match=r"2 .*missing \(final_layer\.linear\.bias.* 0 .*unknown"):
        parse_checkpoint(dict(partial), None, "x")
    with pytest.raises(CheckpointError, match=r"0 .*missing and 1 .*unknown \(byt5_in\.fc1\.weight\)"):
        parse_checkpoint(state | {"byt5_in.fc1.weight": torch.zeros(1)}, None, "x")
    with pytest.raises(CheckpointError, match=r"2 .*missing \(final_layer\.linear\.bias"):
        save_checkpoint(tmp_path / "a.safetensors", partial, RECIPE, None)
    assert not list(tmp_path.iterdir())


def test_quantised_weights_become_floating_point(tmp_path: Path, state: dict[str, Tensor]) -> None:
    small = state | {"img_in.proj.weight": state["img_in.proj.weight"].to(torch.float8_e4m3fn)}
    save_file(small, tmp_path / "a.safetensors")
    rounded = small | {"img_in.proj.weight": small["img_in.proj.weight"].float()}
    assert equal(load_checkpoint(tmp_path / "a.safetensors"), rounded)
    with pytest.raises(CheckpointError, match=r"quantised already \(img_in\.proj\.weight; float8_e4m3fn"):
        load_checkpoint(tmp_path / "a.safetensors", allow_quantised=False)
    # ComfyUI's networks compute with such weights, so the pack keeps them.
    assert parse_checkpoint(small, None, "x").state["img_in.proj.weight"].dtype == torch.float8_e4m3fn


def test_tied_views_are_written(tmp_path: Path, state: dict[str, Tensor]) -> None:
    tied = state | {"time_in.mlp.0.bias": state["time_in.mlp.2.bias"].view(-1)}
    save_checkpoint(tmp_path / "a.safetensors", tied, RECIPE, None)
    assert equal(load_checkpoint(tmp_path / "a.safetensors"), tied)

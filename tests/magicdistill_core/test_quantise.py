import json
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.hashes import file_sha256
from magicdistill_core.int8 import QUANTISATION_KEY
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import file_to_diffusers
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.pocket import files
from magicdistill_core.quantise import quantise_file, quantised_layers, save_quantised
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_header, read_metadata, read_tensors


@pytest.fixture(scope="module")
def pocket() -> Checkpoint:
    return load_checkpoint(files.TEACHER)


@pytest.mark.parametrize(
    ("layout", "inside", "outside"),
    [
        (
            HUNYUAN_VIDEO,
            ["double_blocks.3.img_attn_qkv", "double_blocks.3.txt_mlp.fc2", "single_blocks.11.modulation.linear"],
            [
                "img_in.proj",
                "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
                "time_in.mlp.0",
                "final_layer.linear",
            ],
        ),
        (
            WAN,
            ["blocks.0.self_attn.q", "blocks.39.cross_attn.k_img", "blocks.7.cross_attn.o", "blocks.7.ffn.2"],
            ["patch_embedding", "text_embedding.0", "time_projection.1", "img_emb.proj.1", "head.head"],
        ),
    ],
    ids=["HunyuanVideo", "Wan"],
)
def test_only_the_matrices_of_the_blocks_are_quantised(layout: object, inside: list[str], outside: list[str]) -> None:
    state = {f"{name}.{leaf}": torch.zeros(4, 4) for name in inside + outside for leaf in ("weight", "bias")}
    vectors = ["double_blocks.0.img_attn_q_norm.weight", "blocks.0.norm3.weight", "blocks.0.modulation"]
    state |= {key: torch.zeros(4) for key in vectors}
    assert sorted(quantised_layers(layout, state)) == sorted(inside)


def test_the_file_states_its_layers_and_keeps_the_other_tensors(tmp_path: Path, pocket: Checkpoint) -> None:
    done = []
    result = quantise_file(files.TEACHER, tmp_path / "q.safetensors", lambda *step: done.append(step))
    said = json.loads(read_metadata(tmp_path / "q.safetensors")[QUANTISATION_KEY])
    layers = list(said["layers"])
    assert layers == quantised_layers(HUNYUAN_VIDEO, pocket.state) == list(result.errors)
    assert done == [(n + 1, len(layers)) for n in range(len(layers))]
    assert said["layers"][layers[0]] == {"format": "int8_tensorwise", "full_precision_matrix_mult": True}
    assert Recipe.from_metadata(read_metadata(tmp_path / "q.safetensors")) == pocket.recipe
    # Read by safetensors itself, which checks the header, the offsets and the length.
    tensors = load_file(tmp_path / "q.safetensors")
    assert torch.equal(tensors.pop("null_prompt.text_states"), pocket.null_prompt.text_states)
    assert torch.equal(tensors.pop("null_prompt.pooled"), pocket.null_prompt.pooled)
    for name in layers:
        weight = pocket.state[f"{name}.weight"].float()
        back = tensors.pop(f"{name}.weight") * tensors.pop(f"{name}.weight_scale")
        assert float((back - weight).norm() / weight.norm()) == pytest.approx(result.errors[name], rel=1e-4)
    assert {key for key in pocket.state if key.removesuffix(".weight") not in layers} == tensors.keys()
    assert all(torch.equal(tensors[key], pocket.state[key]) for key in tensors)
    assert max(result.errors.values()) < 0.012
    assert 0.003 < result.error < 0.008
    assert result.bytes_after == pytest.approx((tmp_path / "q.safetensors").stat().st_size, rel=0.01)
    assert f"{len(layers)} layers" in result.summary()


def test_the_other_tensors_can_be_cast(tmp_path: Path, pocket: Checkpoint) -> None:
    save_quantised(tmp_path / "q.safetensors", pocket, torch.float16)
    dtypes = {info.dtype for key, info in read_header(tmp_path / "q.safetensors").items() if "null_" not in key}
    assert dtypes == {"F16", "F32", "I8"}


def test_a_full_size_file_is_half_of_its_bf16_twin(pocket: Checkpoint) -> None:
    """The sizes of the released HunyuanVideo: a width of 3072, 20 double and 40 single blocks."""
    state, times = {}, {"double_blocks": 20, "single_blocks": 40}
    factor = 3072 // pocket.shape.hidden
    for key, value in pocket.state.items():
        kind, _, rest = key.partition(".")
        if kind in times and rest.startswith("0."):
            wide = [size if "_norm" in key else factor * size for size in value.shape]
            state[key] = torch.empty(wide, device="meta")
    inside = sum(times[key.split(".")[0]] * value.numel() for key, value in state.items())
    assert inside == pytest.approx(12.46e9, rel=1e-3)
    matrices = [f"{name}.weight" for name in quantised_layers(HUNYUAN_VIDEO, state)]
    # One byte is saved per value, and the scales of the rows are added.
    saved = sum(times[key.split(".")[0]] * (state[key].numel() - 4 * state[key].shape[0]) for key in matrices)
    assert 0.51 < (2 * 12.82e9 - saved) / (2 * 12.82e9) < 0.52  # embedders and norms are the rest


def test_memory_stays_below_a_few_layers(tmp_path: Path) -> None:
    """The file is mapped and written in pieces, so memory holds at most the float32 copies of one layer."""
    pocket = load_checkpoint(files.TEACHER)
    width, hidden = pocket.shape.hidden, 512
    state = {key: value for key, value in pocket.state.items() if not key.startswith("single_blocks.")}
    for key, value in pocket.state.items():
        if key.startswith("single_blocks.0."):
            shape = [size * hidden // width if size >= width else size for size in value.shape]
            state |= {key.replace(".0.", f".{block}.", 1): torch.full(shape, 0.5) for block in range(20)}
    save_file(state, tmp_path / "large.safetensors")
    # A process of its own: in one that did other work, what that work freed and what it still frees hide the new use.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after, peak = pool.apply(
            _quantise_and_watch, (tmp_path / "large.safetensors", tmp_path / "q.safetensors")
        )
    assert before > 310e6
    assert after < before
    assert 5e6 < peak < 110e6


def _quantise_and_watch(path: Path, out: Path) -> tuple[int, int, int]:
    """Quantise the tensors of a file, and return bytes before and after, and the peak of the new memory in bytes."""
    checkpoint = replace(load_checkpoint(files.TEACHER), state=read_tensors(path)[0])
    start, peak, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = save_quantised(out, checkpoint)
    done.set()
    watcher.join()
    return result.bytes_before, result.bytes_after, peak - start


def _anonymous() -> int:
    """Return the bytes of memory of this process, without mapped files."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_other_spellings_become_the_file_layout(tmp_path: Path, pocket: Checkpoint) -> None:
    save_file(
        {
            k: v.contiguous().clone()
            for k, v in file_to_diffusers(HUNYUAN_VIDEO, pocket.state, pocket.shape.hidden).items()
        },
        tmp_path / "d.safetensors",
    )
    quantise_file(tmp_path / "d.safetensors", tmp_path / "q.safetensors")
    quantise_file(files.TEACHER, tmp_path / "expected.safetensors")
    got, expected = load_file(tmp_path / "q.safetensors"), load_file(tmp_path / "expected.safetensors")
    assert all(torch.equal(got[key], expected[key]) for key in expected if "null_" not in key)


def test_unsuitable_files_are_refused_and_nothing_is_written(tmp_path: Path, pocket: Checkpoint) -> None:
    out = tmp_path / "out" / "q.safetensors"
    quantise_file(files.TEACHER, tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match=r"q\.safetensors .*quantised.*int8"):
        quantise_file(tmp_path / "q.safetensors", out)
    with pytest.raises(CheckpointError, match=r"fake_lora.* is a LoRA"):
        quantise_file(files.FAKE_LORA, out)
    save_file({"blocks.0.weight": torch.zeros(4, 4)}, tmp_path / "stranger.safetensors")
    with pytest.raises(CheckpointError, match=r"stranger\.safetensors.*blocks\.0\.weight"):
        quantise_file(tmp_path / "stranger.safetensors", out)
    broken = pocket.state | {"single_blocks.2.linear1.weight": pocket.state["single_blocks.2.linear1.weight"] / 0}
    with pytest.raises(CheckpointError, match=r"single_blocks\.2\.linear1\.weight .*finite"):
        save_quantised(out, replace(pocket, state=broken))
    assert not out.exists()
    assert not list(tmp_path.glob("out/*"))


def test_a_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, pocket: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e6))
    with pytest.raises(CheckpointError, match=r"q\.safetensors .* 0\.0 GB, but .* 0\.0 GB"):
        save_quantised(tmp_path / "q.safetensors", pocket)
    assert not list(tmp_path.iterdir())


def test_cancelling_keeps_the_old_file(tmp_path: Path, pocket: Checkpoint) -> None:
    out = tmp_path / "q.safetensors"
    quantise_file(files.TEACHER, out)
    old = file_sha256(out)

    def cancel(done: int, _: int) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        save_quantised(out, pocket, progress=cancel)
    assert file_sha256(out) == old
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


def test_a_file_without_recipe_and_prompt_gets_neither(tmp_path: Path, pocket: Checkpoint) -> None:
    save_quantised(tmp_path / "q.safetensors", Checkpoint(pocket.state, pocket.shape, None, None, "x"))
    assert set(read_metadata(tmp_path / "q.safetensors")) == {"format", QUANTISATION_KEY}
    assert not [key for key in read_header(tmp_path / "q.safetensors") if key.startswith("null_prompt.")]
    prompt = NullPrompt(torch.ones(1, 2, 64, dtype=torch.float64), None)
    save_quantised(tmp_path / "p.safetensors", replace(pocket, null_prompt=prompt), torch.float16)
    assert load_file(tmp_path / "p.safetensors")["null_prompt.text_states"].dtype == torch.float64

import argparse
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, parse_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.lora_file import is_lora
from magicdistill_core.wrappers import read_pickle
from tests.makers import file_state, hunyuan_shape

MAGIC = "hydit_unimodel.guidance_model.feedforward_model."


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A tiny teacher of Magic 1-For-1's kind: 33 channels, no guidance embedding."""
    return file_state(hunyuan_shape())


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def same(found: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "mp_rank_00_model_states.pt",
            lambda s: {"module": s, "global_steps": 7, "ds_version": "0.1", "optimizer": None},
        ),
        ("dmd_4_step_i2v.pth", lambda s: {"state_dict": s}),
        ("dmd_4_step_i2v.pth", lambda s: {"state_dict": prefixed("model.", s) | {"vae.conv.weight": torch.ones(2)}}),
        ("generator.pt", lambda s: {"state_dict": prefixed(MAGIC, s)}),
        ("bare.bin", lambda s: s),
        ("nested.ckpt", lambda s: {"epoch": 1, "model": {"module": s}}),
    ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_files_of_training_frameworks_are_read(
    tmp_path: Path, state: dict[str, Tensor], name: str, content: Callable[[dict], dict], old_format: bool
) -> None:
    torch.save(content(state), tmp_path / name, _use_new_zipfile_serialization=not old_format)
    checkpoint = load_checkpoint(tmp_path / name)
    assert same(checkpoint.state, state)
    assert (checkpoint.family().i2v_mode, checkpoint.shape.guidance_embed) == ("concat", False)
    assert not is_lora(tmp_path / name)


@pytest.mark.parametrize("prefix", ["model.", "vae.", MAGIC, "anything.at.all."])
def test_every_prefix_of_the_names_is_removed(prefix: str, state: dict[str, Tensor]) -> None:
    neighbours = {"text_encoder.norm.weight": torch.ones(1), "vae_decoder.conv.bias": torch.ones(1)}
    assert same(parse_checkpoint(prefixed(prefix, state) | neighbours, None, "x").state, state)


def test_of_several_networks_the_generator_is_read(state: dict[str, Tensor]) -> None:
    fake = {key: value + 1 for key, value in state.items()}
    both = prefixed("hydit_unimodel.fake_unet.", fake) | prefixed(MAGIC, state)
    assert same(parse_checkpoint(both, None, "x").state, state)
    strange = prefixed("a.", fake) | prefixed("b.", state)
    with pytest.raises(CheckpointError, match=r"x .* 2 transformers.* a\., b\."):
        parse_checkpoint(strange, None, "x")


class Payload:
    """An object that runs code when it is unpickled, as an attacker would put into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_no_code_of_a_pickle_runs(tmp_path: Path, state: dict[str, Tensor]) -> None:
    trap = tmp_path / "sprung"
    torch.save({"module": state, "extra": Payload(trap)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt .*pickle.*\.safetensors"):
        load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(trap)))
    with pytest.raises(CheckpointError, match=r"b\.pt"):
        load_checkpoint(tmp_path / "b.pt")
    assert not trap.exists()


def test_a_framework_that_pickled_its_arguments_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"module": state, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt .*argparse\.Namespace.*\.safetensors"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kept", [0, 3, 200, -100])
def test_damaged_pickles_are_refused(tmp_path: Path, state: dict[str, Tensor], kept: int) -> None:
    path = tmp_path / "a.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"a\.pt") as refused:
        load_checkpoint(path)
    assert not re.search("PytorchStream|weights_only|torch.load|Errno", str(refused.value))


@pytest.mark.parametrize("content", [{"optimizer": {"lr": 1.0}}, [1, 2], {}, {"module": {"a": 1}}])
def test_files_without_weights_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt .*zero_to_fp32"):
        read_pickle(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"img_in.proj.weight": torch.zeros(128, 33, 1, 2, 2, dtype=torch.float8_e5m2)},
        {"double_blocks.0.img_attn_qkv.weight": torch.zeros(384, 128, dtype=torch.int8)},
        {"double_blocks.0.img_attn_qkv.scale_weight": torch.ones(1)},
        {"scaled_fp8": torch.zeros(2)},
        {"double_blocks.0.img_attn_qkv.weight._scale": torch.ones(384)},
    ],
)
def test_quantised_files_are_refused_on_request_with_advice(
    tmp_path: Path, state: dict[str, Tensor], change: dict
) -> None:
    save_file(state | change, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors .*quantised already.*bf16, fp16 or fp32"):
        load_checkpoint(tmp_path / "a.safetensors", allow_quantised=False)


def test_gguf_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CheckpointError, match=r"a\.gguf .*GGUF.*bf16"):
        load_checkpoint(tmp_path / "a.gguf")

"""Encoding of prompts to files, with text encoders of a few layers in folders like those of real pipelines."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from magicdistill_core.errors import CheckpointError, OutputError
from magicdistill_core.null_prompt import load_null_prompt, prompt_file_template
from magicdistill_core.safetensors_file import read_metadata
from train.data.encoders import PromptError, load_text_encoder
from train.data.prompts import encode_prompt


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start image as a file."""
    path = tmp_path_factory.mktemp("picture") / "face.png"
    Image.effect_noise((72, 40), 60).convert("RGB").save(path)
    return path


@pytest.mark.parametrize(("prompt", "tokens"), [("", 1), ("a smiling face", 4)])
@pytest.mark.parametrize("kind", ["hunyuan_video", "image_to_video", "wan"])
def test_a_file_holds_the_text_states_without_padding(
    kind: str, prompt: str, tokens: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out, folder = tmp_path / "prompt.safetensors", request.getfixturevalue(kind)
    encode_prompt(folder, prompt, out)
    template = "wan" if kind == "wan" else "hunyuan_video"
    expected, found = load_text_encoder(folder, template).encode(prompt), load_null_prompt(out)
    assert found.text_states.shape[1] == tokens
    assert found.text_states.dtype == torch.bfloat16
    assert torch.equal(found.text_states, expected.text_states)
    assert (found.pooled is None) == (kind == "wan")
    if found.pooled is not None and expected.pooled is not None:
        assert torch.equal(found.pooled, expected.pooled)
    assert read_metadata(out)["prompt"] == prompt
    assert prompt_file_template(out) == template
    own, other = ("wan", "hunyuan_video") if kind == "wan" else ("hunyuan_video", "wan")
    assert torch.equal(load_null_prompt(out, own).text_states, found.text_states)
    with pytest.raises(CheckpointError, match=rf"was encoded for .*model is a {other} transformer"):
        load_null_prompt(out, other)


def test_a_file_with_the_start_image_uses_the_pipelines_own_template(
    image_to_video: Path, picture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "prompt.safetensors"
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompt(image_to_video, "a smiling face", out, image=picture)
    assert encoded.text_states.shape[1] == 288 + 4
    assert prompt_file_template(out) == "hunyuan_i2v_concat"
    assert read_metadata(out)["image"] == "face.png"
    assert not caplog.records
    encoded = encode_prompt(image_to_video, "a smiling face", out, image=picture, template="magic141")
    assert encoded.text_states.shape[1] == 146 + 4


def test_an_image_that_is_missing_or_not_needed_is_said(
    image_to_video: Path, wan: Path, picture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "prompt.safetensors"
    with pytest.raises(PromptError, match=r"Magic 1-For-1 shows the start image.*--image"):
        encode_prompt(image_to_video, "", out, template="magic141")
    with pytest.raises(PromptError, match=r"Wan 2\.1 uses the text alone"):
        encode_prompt(wan, "", out, image=picture)
    assert not out.exists()
    with caplog.at_level(logging.WARNING):
        encode_prompt(image_to_video, "", out)
    assert "HunyuanVideo-I2V concat was trained with the start image in every prompt" in caplog.text


def test_the_negative_prompt_of_the_release(
    wan: Path, hunyuan_video: Path, tmp_path: Path, magicdistill: Callable[..., tuple[int, str, str]]
) -> None:
    """Wan 2.1 publishes a list of faults; for HunyuanVideo it is the empty text."""
    texts = []
    for number, pipeline in enumerate((wan, hunyuan_video)):
        out = tmp_path / f"{number}.safetensors"
        status, _, err = magicdistill("encode-prompt", pipeline, "--out", out, "--negative", "--device", "cpu")
        assert status == 0, err
        texts.append(read_metadata(out)["prompt"])
    faults = texts[0].split("\uff0c")
    assert (faults[0], faults[-1], len(set(faults)), texts[1]) == ("色调艳丽", "倒着走", 28, "")
    given = ("--negative", "--prompt", "a face")
    status, _, err = magicdistill("encode-prompt", wan, "--out", tmp_path / "both.safetensors", *given)
    assert status == 2
    assert "--prompt and --negative are two texts" in err


def test_other_and_incomplete_pipelines_are_refused(hunyuan_video: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json.*HunyuanVideo or Wan"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="FluxPipeline"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    # It has folders of the same names, with encoders of other classes.
    assert issubclass(diffusers.HunyuanVideo15ImageToVideoPipeline, diffusers.DiffusionPipeline)
    (tmp_path / "model_index.json").write_text('{"_class_name": "HunyuanVideo15ImageToVideoPipeline"}')
    with pytest.raises(CheckpointError, match="holds a HunyuanVideo15ImageToVideoPipeline"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_bytes((hunyuan_video / "model_index.json").read_bytes())
    with pytest.raises(CheckpointError, match=rf"(?s){re.escape(str(tmp_path))} .*tokenizer and text_encoder"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        encode_prompt(tmp_path / "no_pipeline", "", tmp_path / "file" / "out.safetensors")
    with pytest.raises(OutputError, match="is a folder"):
        encode_prompt(tmp_path / "no_pipeline", "", tmp_path)


@pytest.mark.parametrize(
    ("path", "contents", "message"),
    [
        ("text_encoder_2", None, r"no text_encoder_2/\*\.safetensors"),
        (
            "text_encoder/model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "cannot be used",
        ),
        ("text_encoder/config.json", b"[]", "cannot be used"),
        ("tokenizer/tokenizer.json", b"{}", "cannot be used"),
    ],
)
def test_errors_of_libraries_are_one_line_of_ours(
    path: str, contents: bytes | None, message: str, hunyuan_video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(hunyuan_video, folder)
    if contents is None:
        shutil.rmtree(folder / path)
    else:
        (folder / path).write_bytes(contents)
    with pytest.raises(CheckpointError, match=message) as raised:
        encode_prompt(folder, "", tmp_path / "out.safetensors")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700
    assert not (tmp_path / "out.safetensors").exists()


def test_text_states_that_are_not_finite_are_not_written(wan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(wan, folder)
    weights = next((folder / "text_encoder").glob("*.safetensors"))
    state = load_file(weights)
    name = next(name for name in state if name.endswith("final_layer_norm.weight"))
    state[name][0] = float("inf")
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="infinite values"):
        encode_prompt(folder, "a smiling face", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()

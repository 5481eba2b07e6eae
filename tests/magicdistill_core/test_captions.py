"""Captions in model files and LoRAs: they come back as they were, next to the null prompt, and are found by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.branch import LowRank
from magicdistill_core.captions import MAX_CAPTIONS, caption_tensors, find_caption, pop_captions
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.lora_file import load_lora, load_lora_for, save_lora
from magicdistill_core.quantise import save_quantised
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt

CAPTIONS = {
    "speaks": random_prompt(4, seed=1),
    # Neither dots nor what looks like a training framework's prefix is lost.
    "turns left. module. speaks": random_prompt(2, seed=2),
    "Blinkt, lächelt": random_prompt(7, seed=3),
}


def recipe(kind: str = "generator") -> Recipe:
    return Recipe(kind=kind, steps=4, shift=5.0, width=32, height=32, frames=5, fps=24)  # type: ignore[arg-type]


def assert_same(found: dict[str, NullPrompt], expected: dict[str, NullPrompt] = CAPTIONS) -> None:
    assert list(found) == sorted(expected)
    for caption, prompt in expected.items():
        assert torch.equal(found[caption].text_states, prompt.text_states)
        pooled = found[caption].pooled
        assert (pooled is None) == (prompt.pooled is None)
        assert prompt.pooled is None or torch.equal(pooled, prompt.pooled)


def test_a_model_file_keeps_its_captions_and_its_weights(tmp_path: Path) -> None:
    state, null = file_state(hunyuan_shape()), random_prompt(seed=9)
    save_checkpoint(tmp_path / "model.safetensors", state, recipe(), null, torch.bfloat16, CAPTIONS)
    found = load_checkpoint(tmp_path / "model.safetensors")
    assert_same(found.captions)
    assert found.state.keys() == state.keys()
    assert found.null_prompt is not None
    assert torch.equal(found.null_prompt.text_states, null.text_states)

    prefixed = {f"model.{key}": value for key, value in found.state.items()} | caption_tensors(CAPTIONS)
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    assert_same(load_checkpoint(tmp_path / "prefixed.safetensors").captions)

    save_checkpoint(tmp_path / "plain.safetensors", state, recipe(), null)
    assert load_checkpoint(tmp_path / "plain.safetensors").captions == {}
    assert not any(key.startswith("captions.") for key in load_file(tmp_path / "plain.safetensors"))


def test_an_int8_file_keeps_the_captions(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", file_state(hunyuan_shape()), recipe(), None, captions=CAPTIONS)
    save_quantised(tmp_path / "int8.safetensors", load_checkpoint(tmp_path / "model.safetensors"))
    assert_same(pop_captions(load_file(tmp_path / "int8.safetensors")))


def test_a_lora_keeps_its_captions(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    branch = LowRank(torch.randn(2, 128), torch.randn(384, 2), 2.0)
    save_lora(path, {"double_blocks.0.img_attn_qkv": branch}, recipe("generator_lora"), random_prompt(), CAPTIONS)
    assert_same(load_lora(path, 128).captions)
    fitted = load_lora_for(CONCAT.architecture, path, 128)
    assert_same(fitted.captions)
    assert fitted.misses == ()


def test_captions_without_pooled_text(tmp_path: Path) -> None:
    captions = {"a": random_prompt(pooled_dim=None)}
    assert_same(pop_captions(caption_tensors(captions)), captions)


def test_captions_without_the_pooled_text_that_the_network_needs_are_not_offered(tmp_path: Path) -> None:
    """Like a null prompt without it: the network could not be called with it."""
    captions = {"whole": random_prompt(seed=1), "half": random_prompt(pooled_dim=None)}
    save_checkpoint(tmp_path / "model.safetensors", file_state(hunyuan_shape()), recipe(), None, captions=captions)
    assert load_checkpoint(tmp_path / "model.safetensors").captions.keys() == {"whole"}


def test_more_captions_than_a_file_carries_are_refused() -> None:
    many = {f"caption {number}": random_prompt(1) for number in range(MAX_CAPTIONS + 1)}
    assert len(caption_tensors(dict(list(many.items())[:MAX_CAPTIONS]))) == 2 * MAX_CAPTIONS
    with pytest.raises(CheckpointError, match=f"carry {MAX_CAPTIONS} captions, but there are {MAX_CAPTIONS + 1}"):
        caption_tensors(many)


def test_a_caption_is_found_by_its_text() -> None:
    assert find_caption(CAPTIONS, "speaks", "m") is CAPTIONS["speaks"]
    assert find_caption(CAPTIONS, "BLINKT, LÄCHELT", "m") is CAPTIONS["Blinkt, lächelt"]
    both = {"A": random_prompt(seed=1), "a": random_prompt(seed=2)}
    assert find_caption(both, "a", "m") is both["a"]
    with pytest.raises(CheckpointError, match=r"m has no caption 'sings'.*speaks; turns left\. module\. speaks"):
        find_caption(CAPTIONS, "sings", "m")
    with pytest.raises(CheckpointError, match="m carries no captions"):
        find_caption({}, "speaks", "m")

from pathlib import Path

import pytest
import torch

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import ARCHITECTURE
from magicdistill_core.lora_file import is_lora, load_lora, load_lora_for, save_lora
from magicdistill_core.recipe import Recipe

RECIPE = Recipe(kind="teacher", steps=28, shift=5.0, width=96, height=96, frames=17, fps=24.0)


def test_loras_keep_recipe_and_alpha_and_are_not_read_as_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    generator = torch.Generator().manual_seed(2)
    branch = LowRank(torch.randn(6, 128, generator=generator), torch.randn(384, 6, generator=generator), alpha=1.5)
    recipe = RECIPE.model_copy(update={"kind": "fake_lora", "base_hash": "ab", "lora_rank": 2, "lora_alpha": 0.5})
    save_lora(path, {"double_blocks.0.img_attn_qkv": branch}, recipe)
    lora = load_lora(path, 128)
    assert (lora.recipe, lora.source) == (recipe, "lora.safetensors")
    back = lora.branches["double_blocks.0.img_attn_qkv"]
    assert back.alpha == 1.5
    assert torch.equal(back.delta(1.0), branch.delta(1.0))
    assert lora.null_prompt is None
    assert is_lora(path)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is a LoRA.*transformer"):
        load_checkpoint(path)


def test_a_lora_may_carry_the_null_prompt_it_was_trained_with(tmp_path: Path) -> None:
    path, prompt = tmp_path / "lora.safetensors", NullPrompt(torch.randn(1, 3, 16), torch.randn(1, 768))
    branch = LowRank(torch.randn(6, 128), torch.randn(384, 6), alpha=1.5)
    save_lora(path, {"double_blocks.0.img_attn_qkv": branch}, RECIPE, prompt)
    for lora in (load_lora(path, 128), load_lora_for(ARCHITECTURE, path, 128)):
        assert list(lora.branches) == ["double_blocks.0.img_attn_qkv"]
        assert lora.misses == ()
        assert lora.null_prompt is not None
        assert torch.equal(lora.null_prompt.text_states, prompt.text_states)
        assert torch.equal(lora.null_prompt.pooled, prompt.pooled)

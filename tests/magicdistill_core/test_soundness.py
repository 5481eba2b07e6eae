"""Weights and null prompts that a network cannot compute with are refused; valid ones pass."""

import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.soundness import check_null_prompt, check_number_types


def test_whole_numbers_need_a_scale() -> None:
    sound = {
        "a.weight": torch.zeros(2, 2),
        "b.weight": torch.ones(2, 2, dtype=torch.int8),
        "b.weight_scale": torch.tensor(0.1),
        "b.comfy_quant": torch.ones(4, dtype=torch.uint8),
        "c.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "d.weight": torch.ones(2, 2, dtype=torch.uint8),
        "d.comfy_quant": torch.ones(4, dtype=torch.uint8),
    }
    check_number_types(sound, "file")
    with pytest.raises(CheckpointError, match=r"file holds 1 weights as int8 .*b\.weight"):
        check_number_types({key: value for key, value in sound.items() if key != "b.comfy_quant"}, "file")
    with pytest.raises(CheckpointError, match=r"file holds 2 weights as bool, int8 .*\(e\.bias, e\.weight\)"):
        check_number_types(
            sound | {"e.weight": torch.ones(2, dtype=torch.int8), "e.bias": torch.ones(2, dtype=torch.bool)}, "file"
        )


TEXT, POOLED = torch.zeros(1, 5, 32), torch.zeros(1, 768)


def test_sound_prompts_pass() -> None:
    check_null_prompt(NullPrompt(TEXT, POOLED), "file", 32, 768)
    check_null_prompt(NullPrompt(TEXT.bfloat16(), None), "file", 32, None)
    check_null_prompt(NullPrompt(TEXT, POOLED), "file", None, None)


@pytest.mark.parametrize(
    ("text", "pooled", "named"),
    [
        (torch.zeros(1, 5, 31), POOLED, r"text states .*\[1, 5, 31\] .*float32.*\[1, any, 32\]"),
        (torch.zeros(2, 5, 32), POOLED, r"\[2, 5, 32\]"),
        (torch.zeros(5, 32), POOLED, r"\[5, 32\]"),
        (torch.zeros(1, 0, 32), POOLED, r"\[1, 0, 32\]"),
        (TEXT.int(), POOLED, "int32"),
        (TEXT / 0, POOLED, "finite"),
        (TEXT, torch.zeros(768), r"pooled text .*\[768\]"),
        (TEXT, POOLED + float("inf"), "pooled text"),
    ],
)
def test_unsound_prompts_are_described(text: Tensor, pooled: Tensor, named: str) -> None:
    with pytest.raises(CheckpointError, match=f"null prompt in file .*{named}"):
        check_null_prompt(NullPrompt(text, pooled), "file", 32, 768)

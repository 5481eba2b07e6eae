"""Folders of pipelines: which prompt templates they serve, and how their networks are loaded."""

from pathlib import Path

import pytest
import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from train.data.encoders import load_text_encoder, own_template, templates_of


@pytest.mark.parametrize(
    ("kind", "own", "served"),
    [
        ("hunyuan_video", "hunyuan_video", {"hunyuan_video"}),
        (
            "image_to_video",
            "hunyuan_i2v_concat",
            {"hunyuan_video", "hunyuan_i2v_concat", "hunyuan_i2v_token_replace", "magic141"},
        ),
        ("wan", "wan", {"wan"}),
    ],
)
def test_templates_of_pipelines(kind: str, own: str, served: set[str], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    assert own_template(folder) == own
    assert set(templates_of(folder)) == served


def test_encoders_are_loaded_whole_next_to_a_zero3_configuration(hunyuan_video: Path) -> None:
    """Otherwise transformers would partition them, or fail without a process group."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    states = load_text_encoder(hunyuan_video, dtype=torch.float32).encode("a face").text_states
    assert states.abs().sum() > 0
    assert config is not None

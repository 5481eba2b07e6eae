"""Prompts encoded to files, with text encoders of a few layers in the folders of true pipelines."""

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline, WanPipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from magicdistill_core.checkpoint import load_null_prompt, read_metadata
from magicdistill_core.errors import CheckpointError
from train.prompts import encode_prompt

WORDS = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", "a", "smiling", "face"])}


def tokenizer() -> PreTrainedTokenizerFast:
    """Words and an end, padded on the right."""
    made = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", WORDS["<end>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=77
    )


@pytest.fixture(scope="module")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": len(WORDS)}
    llama = LlamaModel(LlamaConfig(**sizes, intermediate_size=32))
    clip = CLIPTextModel(CLIPTextConfig(**sizes, intermediate_size=32, eos_token_id=WORDS["<end>"]))
    folder = tmp_path_factory.mktemp("hunyuan")
    HunyuanVideoPipeline(llama, tokenizer(), None, None, None, clip, tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    folder = tmp_path_factory.mktemp("wan")
    WanPipeline(tokenizer(), UMT5EncoderModel(UMT5Config(**sizes)), None, None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["", "a smiling face"])
def test_hunyuan_videos_prompt_is_the_pipelines_without_padding(
    hunyuan_video: Path, prompt: str, tmp_path: Path
) -> None:
    out = tmp_path / "prompt.safetensors"
    encode_prompt(hunyuan_video, prompt, out)
    lacking = dict.fromkeys(("transformer", "vae", "scheduler"))
    pipeline = HunyuanVideoPipeline.from_pretrained(hunyuan_video, dtype=torch.bfloat16, **lacking)
    with torch.no_grad():
        text, pooled, mask = pipeline.encode_prompt(prompt, device=torch.device("cpu"))
    found = load_null_prompt(out)
    kept = int(mask.sum())
    assert 0 < kept < mask.shape[1]
    assert torch.equal(found.text_states, text[:, :kept])
    assert found.pooled is not None
    assert torch.equal(found.pooled, pooled)
    assert read_metadata(out)["prompt"] == prompt


def test_wans_prompt_is_the_pipelines_without_padding(wan: Path, tmp_path: Path) -> None:
    out = tmp_path / "prompt.safetensors"
    encode_prompt(wan, "a smiling face", out)
    lacking = dict.fromkeys(("transformer", "transformer_2", "vae", "scheduler"))
    pipeline = WanPipeline.from_pretrained(wan, dtype=torch.bfloat16, **lacking)
    ids = torch.tensor([[WORDS[word] for word in ("a", "smiling", "face", "<end>")]])
    with torch.no_grad():
        expected = pipeline.text_encoder(ids).last_hidden_state
    found = load_null_prompt(out)
    assert found.pooled is None
    assert torch.allclose(found.text_states.float(), expected.float(), atol=0.02)


def test_what_is_no_such_pipeline_is_refused(hunyuan_video: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model_index\.json.*HunyuanVideo or Wan"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="holds a FluxPipeline"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_bytes((hunyuan_video / "model_index.json").read_bytes())
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()

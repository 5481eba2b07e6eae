"""HunyuanVideo's prompt, compared with diffusers' pipeline on small networks."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextModel, LlamaModel, LlamaTokenizerFast

from magicdistill_core.errors import CheckpointError
from train.data.encoders import PromptError, load_text_encoder

from ..pipelines import TEMPLATE, llama_tokenizer, word_tokenizer


@pytest.mark.parametrize("caption", ["", "a smiling face", " ".join(["word"] * 255)])
@pytest.mark.parametrize("kind", ["hunyuan_video", "image_to_video"])
def test_states_are_those_of_the_pipeline(
    kind: str, caption: str, hunyuan_video: Path, request: pytest.FixtureRequest
) -> None:
    """Also with the language model of an image-to-video pipeline, which is the same one inside LLaVA."""
    encoder = load_text_encoder(request.getfixturevalue(kind), "hunyuan_video", dtype=torch.float32)
    found = encoder.encode(caption)
    llama = LlamaModel.from_pretrained(hunyuan_video / "text_encoder").eval()
    clip_l = CLIPTextModel.from_pretrained(hunyuan_video / "text_encoder_2").eval()
    pipeline = HunyuanVideoPipeline(llama, llama_tokenizer(), None, None, None, clip_l, word_tokenizer())
    with torch.no_grad():
        text, pooled, mask = pipeline.encode_prompt(caption, device=torch.device("cpu"))
    # The caption and the end of the turn.
    assert found.text_states.shape[1] == int(mask.sum()) == len(caption.split()) + 1
    torch.testing.assert_close(found.text_states, text[:, mask[0].bool()], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pooled, pooled)


def test_captions_that_cannot_be_encoded_are_refused(hunyuan_video: Path) -> None:
    encoder = load_text_encoder(hunyuan_video)
    with pytest.raises(PromptError, match=r"10000 words, which are 10001 tokens.* at most 256 tokens.*about 179 words"):
        encoder.encode(" ".join(["word"] * 10_000))
    with pytest.raises(PromptError, match=r"'<\|eot_id\|>'.*control token"):
        encoder.encode("a face<|eot_id|>")
    with pytest.raises(PromptError, match="'<end>'"):  # of CLIP-L's tokenizer
        encoder.encode("a <end> face")
    with pytest.raises(PromptError, match=r"text only.*image is not needed"):
        encoder.encode("a face", torch.zeros(1, 3, 32, 32))
    with pytest.raises(PromptError, match=r"is a HunyuanVideoPipeline.*hunyuan_video, not hunyuan_i2v_concat"):
        load_text_encoder(hunyuan_video, "hunyuan_i2v_concat")


def test_a_tokenizer_that_does_not_keep_the_template_is_refused(hunyuan_video: Path, tmp_path: Path) -> None:
    """Refused: Llama 3's file read by the class that diffusers names, and a file without its first token."""
    folder = tmp_path / "pipeline"
    shutil.copytree(hunyuan_video, folder)
    spoiled = LlamaTokenizerFast.from_pretrained(folder / "tokenizer")
    ids = spoiled(TEMPLATE, add_special_tokens=False).input_ids
    assert "Describethevideobydetailing" in spoiled.decode(ids)
    spoiled.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match=r"expected 95.*Describethevideo"):
        load_text_encoder(folder)
    short = llama_tokenizer()
    short.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    short.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="94 tokens, expected 95"):
        load_text_encoder(folder)

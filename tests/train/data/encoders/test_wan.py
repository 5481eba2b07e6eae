"""Wan 2.1's prompt, compared with diffusers' pipeline on a small UMT5."""

from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from transformers import UMT5EncoderModel

from train.data.encoders import PromptError, load_text_encoder

from ..pipelines import word_tokenizer


@pytest.mark.parametrize(
    "caption",
    ["", "a smiling face", "  a\n\n smiling&amp;amp; face ", "a smiling face caf\u00c3\u00a9", "a " * 511],
)
def test_states_are_those_of_the_pipeline(caption: str, wan: Path) -> None:
    found = load_text_encoder(wan, dtype=torch.float32).encode(caption)
    network = UMT5EncoderModel.from_pretrained(wan / "text_encoder").eval()
    pipeline = WanImageToVideoPipeline(word_tokenizer(), network, None, None)
    with torch.no_grad():
        text, _ = pipeline.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=512, device=torch.device("cpu")
        )
    tokens = found.text_states.shape[1]
    torch.testing.assert_close(found.text_states, text[:, :tokens], atol=1e-4, rtol=1e-4)
    # The pipeline pads to 512 with zeros, and so does each call of our network.
    assert text.shape[1] == 512
    assert not text[:, tokens:].any()
    assert text[:, tokens - 1].any()
    assert found.pooled is None


def test_captions_that_cannot_be_encoded_are_refused(wan: Path) -> None:
    encoder = load_text_encoder(wan)
    with pytest.raises(PromptError, match=r"10000 words, which are 10001 tokens. Wan 2\.1 reads at most 512"):
        encoder.encode("a " * 10_000)
    with pytest.raises(PromptError, match=r"Wan 2\.1 uses the text alone"):
        encoder.encode("a face", torch.zeros(1, 3, 32, 32))
    with pytest.raises(PromptError, match=r"is a WanPipeline.*wan, not magic141"):
        load_text_encoder(wan, "magic141")

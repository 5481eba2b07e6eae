"""HunyuanVideo-I2V's prompt with the start image, compared with diffusers' pipeline on small networks."""

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from transformers import CLIPImageProcessor, CLIPTextModel, LlavaForConditionalGeneration

from magicdistill_core.prompt_templates import PromptTemplate
from train.data.encoders import PromptError, load_text_encoder

from ..pipelines import llama_tokenizer, word_tokenizer

# Rows and columns: the processor crops the left and the right. It does not resize: that rounds, see test_clip_pixels.
WIDE = (336, 604)


@pytest.fixture(scope="module")
def pipeline(image_to_video: Path) -> HunyuanVideoImageToVideoPipeline:
    """The pipeline of diffusers on the same networks in float32. Its tokenizer keeps the rules of its file."""
    llava = LlavaForConditionalGeneration.from_pretrained(image_to_video / "text_encoder").eval()
    clip_l = CLIPTextModel.from_pretrained(image_to_video / "text_encoder_2").eval()
    processor = CLIPImageProcessor.from_pretrained(image_to_video / "image_processor")
    return HunyuanVideoImageToVideoPipeline(
        llava, llama_tokenizer(), None, None, None, clip_l, word_tokenizer(), processor
    )


def photo(rows: int, columns: int) -> torch.Tensor:
    """An image `[1, 3, H, W]` of 8-bit levels."""
    levels = torch.randint(0, 256, (1, 3, rows, columns), generator=torch.Generator().manual_seed(7))
    return levels.float() / 255


@pytest.mark.parametrize("caption", ["", "a smiling face", " ".join(["word"] * 250)])
@pytest.mark.parametrize(
    ("template", "stride", "tokens"), [("hunyuan_i2v_concat", 2, 288), ("hunyuan_i2v_token_replace", 4, 144)]
)
def test_states_are_those_of_the_pipeline(
    template: PromptTemplate,
    stride: int,
    tokens: int,
    caption: str,
    image_to_video: Path,
    pipeline: HunyuanVideoImageToVideoPipeline,
) -> None:
    image = photo(*WIDE)
    found = load_text_encoder(image_to_video, template, dtype=torch.float32).encode(caption, image)
    picture = (image[0] * 255).to(torch.uint8)
    with torch.no_grad():
        text, pooled, mask = pipeline.encode_prompt(
            picture, caption, device=torch.device("cpu"), image_embed_interleave=stride
        )
    expected = text[:, mask[0].bool()]
    # The image, the caption, and the blank line after the assistant's header.
    assert found.text_states.shape[1] == expected.shape[1] == tokens + len(caption.split()) + 1
    torch.testing.assert_close(found.text_states, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pooled, pooled)


def test_the_image_and_the_text_matter(image_to_video: Path) -> None:
    encoder = load_text_encoder(image_to_video, "hunyuan_i2v_concat", dtype=torch.float32)
    one, other = encoder.encode("a face", photo(*WIDE)), encoder.encode("a face", 1 - photo(*WIDE))
    assert (one.text_states - other.text_states).abs().max() > 1e-3
    other = encoder.encode("a smiling", photo(*WIDE))
    assert torch.equal(one.text_states[:, :288], other.text_states[:, :288])
    assert (one.text_states - other.text_states).abs().max() > 1e-3


def test_the_pipelines_own_template_follows_its_transformer(image_to_video: Path, tmp_path: Path) -> None:
    assert load_text_encoder(image_to_video).template == "hunyuan_i2v_concat"
    for part in image_to_video.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"image_condition_type": "token_replace"}')
    assert load_text_encoder(tmp_path).template == "hunyuan_i2v_token_replace"


def test_captions_that_cannot_be_encoded_are_refused(image_to_video: Path) -> None:
    encoder = load_text_encoder(image_to_video, "hunyuan_i2v_concat")
    with pytest.raises(PromptError, match=r"HunyuanVideo-I2V concat .*no image.*--image"):
        encoder.encode("a face")
    with pytest.raises(PromptError, match=r"'word word .*\.\.\.' has 10000 words.* 10000 tokens.* at most 251"):
        encoder.encode(" ".join(["word"] * 10_000), photo(*WIDE))
    with pytest.raises(PromptError, match=r"252 tokens"):
        encoder.encode(" ".join(["word"] * 252), photo(*WIDE))
    with pytest.raises(PromptError, match=r"'<image>'.*control token"):
        encoder.encode("a face <image>", photo(*WIDE))
    assert DEFAULT_PROMPT_TEMPLATE["crop_start"] == 103

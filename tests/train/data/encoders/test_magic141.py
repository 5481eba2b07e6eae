"""Magic 1-For-1's prompt, compared with plain calls of transformers' LLaVA."""

from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration

from magicdistill_core.prompt_templates import MAGIC141_IMAGE_TEMPLATE
from train.data.encoders import load_text_encoder

from ..pipelines import llama_tokenizer


def test_image_states_come_first_then_hunyuanvideos_text_states(image_to_video: Path) -> None:
    # The processor crops this image, and does not resize it.
    levels = torch.randint(0, 256, (1, 3, 604, 336), generator=torch.Generator().manual_seed(3))
    encoder = load_text_encoder(image_to_video, "magic141", dtype=torch.float32)
    found = encoder.encode("a smiling face", levels.float() / 255)

    llava = LlavaForConditionalGeneration.from_pretrained(image_to_video / "text_encoder").eval()
    words = llama_tokenizer()
    before, after = MAGIC141_IMAGE_TEMPLATE.split("<image>")
    opening = words(before).input_ids
    ids = opening + [words.convert_tokens_to_ids("<image>")] * 576 + words(after, add_special_tokens=False).input_ids
    processor = CLIPImageProcessor.from_pretrained(image_to_video / "image_processor")
    pixels = processor(levels[0].to(torch.uint8), return_tensors="pt").pixel_values
    with torch.no_grad():
        last = llava(torch.tensor([ids]), pixels, output_hidden_states=True).hidden_states[-1]
    # The blank line of the user's header is the last token before the image; one token ends the turn.
    assert words.decode(opening[-1:]) == "\n\n"
    assert len(ids) == len(opening) + 576 + 1
    image = last[:, len(opening) :]
    expected = torch.cat([last[:, len(opening) - 1 : len(opening)], image[:, :576:4], image[:, 576:]], dim=1)
    assert expected.shape[1] == 146
    torch.testing.assert_close(found.text_states[:, :146], expected, atol=1e-4, rtol=1e-4)

    text = load_text_encoder(image_to_video, "hunyuan_video", dtype=torch.float32).encode("a smiling face")
    assert torch.equal(found.text_states[:, 146:], text.text_states)
    assert found.pooled is not None
    assert text.pooled is not None
    assert torch.equal(found.pooled, text.pooled)

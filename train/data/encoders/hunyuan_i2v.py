"""HunyuanVideo-I2V's text encoder: LLaVA sees the start image and the text in one template; and CLIP-L.

The states are those of every second (concat) or fourth (token-replace) token of the image, then those of the text and
of the blank line after the assistant's header. The end of the turn and the header itself are cut out.
"""

from pathlib import Path

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.prompt_templates import (
    HUNYUAN_I2V_IMAGE_START,
    HUNYUAN_I2V_TAIL,
    HUNYUAN_I2V_TEXT_START,
    HUNYUAN_TOKENS,
    IMAGE_STRIDES,
    IMAGE_TOKENS,
    PromptTemplate,
)

from .base import check_caption, check_image, check_length
from .hunyuan_video import LAYER
from .llama import ClipL, Llama, load_clip_l, load_llama

TEMPLATE: str = DEFAULT_PROMPT_TEMPLATE["template"]


class HunyuanI2VText:
    """The text encoder of HunyuanVideo-I2V, for one of its two models."""

    def __init__(self, template: PromptTemplate, llama: Llama, clip_l: ClipL) -> None:
        """Combine LLaVA and CLIP-L.

        Args:
            template: `hunyuan_i2v_concat` or `hunyuan_i2v_token_replace`.
            llama: the language model, LLaVA's.
            clip_l: CLIP-L.
        """
        self.template = template
        self._llama, self._clip_l = llama, clip_l

    def encode(self, caption: str, image: Tensor | None = None, /) -> NullPrompt:
        """Encode a caption and the start image.

        Args:
            caption: the text.
            image: `[1, 3, H, W]` in [0, 1].

        Raises:
            PromptError: see `TextEncoder.encode`.
        """
        check_image(self.template, image)
        check_caption(caption, self._llama.tokenizer, self._clip_l.tokenizer)
        tokens = self._llama.tokens(TEMPLATE.format(caption))
        # The release cuts longer texts off after the tail's tokens are counted too.
        length = len(tokens) - HUNYUAN_I2V_TEXT_START - HUNYUAN_I2V_TAIL
        check_length(caption, length, HUNYUAN_TOKENS - HUNYUAN_I2V_TAIL, self.template)
        states = self._llama.states(tokens, LAYER, image)
        image_end = HUNYUAN_I2V_IMAGE_START + IMAGE_TOKENS
        text_start = HUNYUAN_I2V_TEXT_START + IMAGE_TOKENS - 1
        parts = (
            states[:, HUNYUAN_I2V_IMAGE_START : image_end : IMAGE_STRIDES[self.template]],
            states[:, text_start:-HUNYUAN_I2V_TAIL],
            states[:, -1:],
        )
        return NullPrompt(torch.cat(parts, dim=1), self._clip_l.pooled(caption))


def load_hunyuan_i2v(
    pipeline: Path, template: PromptTemplate, device: torch.device, dtype: torch.dtype
) -> HunyuanI2VText:
    """Load the encoder from the folder of a HunyuanVideo-I2V pipeline.

    Args:
        pipeline: the folder.
        template: `hunyuan_i2v_concat` or `hunyuan_i2v_token_replace`.
        device: device of the encoders.
        dtype: dtype of the encoders.

    Raises:
        CheckpointError: if a part cannot be loaded.
    """
    llama = load_llama(pipeline, device, dtype, (TEMPLATE, HUNYUAN_I2V_TEXT_START))
    return HunyuanI2VText(template, llama, load_clip_l(pipeline, device, dtype))

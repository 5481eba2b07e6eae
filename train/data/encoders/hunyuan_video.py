"""HunyuanVideo's text encoder: Llama 3 in the template for text-to-video, and CLIP-L."""

from pathlib import Path
from typing import ClassVar

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.prompt_templates import HUNYUAN_TEXT_START, HUNYUAN_TOKENS, HUNYUAN_VIDEO, PromptTemplate

from .base import check_caption, check_image, check_length
from .llama import ClipL, Llama, load_clip_l, load_llama

TEMPLATE: str = DEFAULT_PROMPT_TEMPLATE["template"]
# HunyuanVideo reads the states before Llama's last two layers.
LAYER = -3


class HunyuanVideoText:
    """The text encoder of HunyuanVideo's text-to-video template."""

    template: ClassVar[PromptTemplate] = HUNYUAN_VIDEO

    def __init__(self, llama: Llama, clip_l: ClipL) -> None:
        """Combine the language model and CLIP-L."""
        self._llama, self._clip_l = llama, clip_l

    def encode(self, caption: str, image: Tensor | None = None, /) -> NullPrompt:
        """Encode a caption: Llama's states of the caption and of the end of the turn, and CLIP-L's pooled text.

        Args:
            caption: the text.
            image: None.

        Raises:
            PromptError: see `TextEncoder.encode`.
        """
        check_image(self.template, image)
        states = text_states(self._llama, caption, self.template)
        check_caption(caption, self._clip_l.tokenizer)
        return NullPrompt(states, self._clip_l.pooled(caption))


def text_states(llama: Llama, caption: str, template: PromptTemplate) -> Tensor:
    """Return Llama's states `[1, L, width]` of a caption in HunyuanVideo's template, without the template's beginning.

    Args:
        llama: the language model.
        caption: the text.
        template: the prompt template for which this is done, for messages.

    Raises:
        PromptError: if the caption is too long or contains control tokens.
    """
    check_caption(caption, llama.tokenizer)
    tokens = llama.tokens(TEMPLATE.format(caption))
    check_length(caption, len(tokens) - HUNYUAN_TEXT_START, HUNYUAN_TOKENS, template)
    return llama.states(tokens, LAYER)[:, HUNYUAN_TEXT_START:]


def load_hunyuan_video(pipeline: Path, device: torch.device, dtype: torch.dtype) -> HunyuanVideoText:
    """Load the encoder from the folder of a HunyuanVideo or HunyuanVideo-I2V pipeline.

    Args:
        pipeline: the folder.
        device: device of the encoders.
        dtype: dtype of the encoders.

    Raises:
        CheckpointError: if a part cannot be loaded.
    """
    llama = load_llama(pipeline, device, dtype, (TEMPLATE, HUNYUAN_TEXT_START))
    return HunyuanVideoText(llama, load_clip_l(pipeline, device, dtype))

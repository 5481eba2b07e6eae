"""Magic 1-For-1's text encoder: LLaVA's states of the start image, then Llama's states of the text; and CLIP-L.

- Image states are LLaVA's last hidden states, after its final norm, from the end of the user header on. Of the image's
  own tokens every fourth is kept: 1 + 144 + 1 = 146 states.
- Text states are HunyuanVideo's own.

Its release runs two language models with the same weights. Here one does both.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.prompt_templates import (
    HUNYUAN_TEXT_START,
    IMAGE_STRIDES,
    IMAGE_TOKENS,
    MAGIC141,
    MAGIC141_IMAGE_TEMPLATE,
    USER_HEADER,
    PromptTemplate,
)

from .base import check_caption, check_image
from .hunyuan_video import TEMPLATE, text_states
from .llama import IMAGE_MARK, ClipL, Llama, load_clip_l, load_llama

_LAST_LAYER = -1


class Magic141Text:
    """The text encoder of Magic 1-For-1."""

    template: ClassVar[PromptTemplate] = MAGIC141

    def __init__(self, llama: Llama, clip_l: ClipL) -> None:
        """Combine LLaVA and CLIP-L."""
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
        check_caption(caption, self._clip_l.tokenizer)
        text = text_states(self._llama, caption, self.template)
        return NullPrompt(torch.cat([self._image_states(image), text], dim=1), self._clip_l.pooled(caption))

    def _image_states(self, image: Tensor | None) -> Tensor:
        tokens = self._llama.tokens(MAGIC141_IMAGE_TEMPLATE)
        start = len(self._llama.tokens(MAGIC141_IMAGE_TEMPLATE.partition(USER_HEADER)[0] + USER_HEADER))
        place = len(self._llama.tokens(MAGIC141_IMAGE_TEMPLATE.partition(IMAGE_MARK)[0]))
        states = self._llama.states(tokens, _LAST_LAYER, image)
        end = place + IMAGE_TOKENS
        kept = states[:, place : end : IMAGE_STRIDES[self.template]]
        return torch.cat([states[:, start:place], kept, states[:, end:]], dim=1)


def load_magic141(pipeline: Path, device: torch.device, dtype: torch.dtype) -> Magic141Text:
    """Load the encoder from the folder of a HunyuanVideo-I2V pipeline, whose encoders Magic 1-For-1 uses.

    Args:
        pipeline: the folder.
        device: device of the encoders.
        dtype: dtype of the encoders.

    Raises:
        CheckpointError: if a part cannot be loaded.
    """
    llama = load_llama(pipeline, device, dtype, (TEMPLATE, HUNYUAN_TEXT_START))
    return Magic141Text(llama, load_clip_l(pipeline, device, dtype))

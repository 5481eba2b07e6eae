"""Wan 2.1's text encoder: UMT5. CLIP's features of the start image are another part: see `start_images`."""

import html
import re
from pathlib import Path
from typing import Any, ClassVar

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.wan import TEXT_TOKENS
from magicdistill_core.prompt_templates import WAN, PromptTemplate

from .base import check_caption, check_image, check_length
from .folders import load_network, load_tokenizer


class WanText:
    """The text encoder of Wan 2.1."""

    template: ClassVar[PromptTemplate] = WAN

    def __init__(self, tokenizer: Any, network: Any) -> None:
        """Combine a tokenizer and a `UMT5EncoderModel`, which is on its device."""
        self._tokenizer, self._network = tokenizer, network

    @torch.no_grad()
    def encode(self, caption: str, image: Tensor | None = None, /) -> NullPrompt:
        """Encode a caption. The network pads the states to 512 tokens when it is called.

        Args:
            caption: the text.
            image: None.

        Raises:
            PromptError: see `TextEncoder.encode`.
        """
        check_image(self.template, image)
        check_caption(caption, self._tokenizer)
        tokens = self._tokenizer(cleaned(caption), return_tensors="pt")
        check_length(caption, tokens.input_ids.shape[1], TEXT_TOKENS, self.template)
        device = self._network.device
        states: Tensor = self._network(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state
        return NullPrompt(states, None)


def cleaned(caption: str) -> str:
    """Repair a text as Wan 2.1's release does: damaged Unicode, HTML entities (also twice encoded), white space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


def load_wan(pipeline: Path, device: torch.device, dtype: torch.dtype) -> WanText:
    """Load the encoder from the folder of a Wan pipeline.

    Args:
        pipeline: the folder.
        device: device of the encoder.
        dtype: dtype of the encoder.

    Raises:
        CheckpointError: if a part cannot be loaded.
    """
    tokenizer = load_tokenizer(AutoTokenizer, pipeline / "tokenizer")
    return WanText(tokenizer, load_network(UMT5EncoderModel, pipeline / "text_encoder", device, dtype))

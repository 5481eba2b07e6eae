"""Llama 3, alone or inside LLaVA, and CLIP-L: the text encoders that HunyuanVideo's family shares."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, LlamaModel, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as FastTokenizer

from magicdistill_core.errors import CheckpointError
from magicdistill_core.prompt_templates import IMAGE_TOKENS

from ..clip_pixels import clip_pixels
from .folders import has_llava, load_network, load_tokenizer

IMAGE_MARK = "<image>"
_POOLED_TOKENS = 77


class Llama:
    """Llama 3 with its tokenizer. If it is LLaVA's, texts may contain one image."""

    def __init__(self, tokenizer: Any, network: Any, folder: Path) -> None:
        """Combine a tokenizer and a network.

        Args:
            tokenizer: from `llama_tokenizer`.
            network: transformers' `LlamaModel` or `LlavaForConditionalGeneration`, on its device.
            folder: where the network comes from, for error messages.

        Raises:
            CheckpointError: if LLaVA's vision model or the image's token are not those of HunyuanVideo-I2V's release.
        """
        self.tokenizer = tokenizer
        self._network = network
        self._image_token: int | None = None
        if not isinstance(network, LlavaForConditionalGeneration):
            return
        config: Any = network.config
        self._side: int = config.vision_config.image_size
        tokens = (self._side // config.vision_config.patch_size) ** 2
        found = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        if tokens != IMAGE_TOKENS or found != config.image_token_index:
            raise CheckpointError(
                f"The vision model in {folder} makes {tokens} tokens of an image at token {config.image_token_index}; "
                f"the tokenizer's {IMAGE_MARK} is {found}. Expected {IMAGE_TOKENS} tokens and the same number twice. "
                f"Use the text encoder of HunyuanVideo-I2V's diffusers release."
            )
        self._image_token = found

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, with the first token of every text."""
        return list(self.tokenizer(text).input_ids)

    @torch.no_grad()
    def states(self, tokens: list[int], layer: int, image: Tensor | None = None) -> Tensor:
        """Return the hidden states of a layer.

        Args:
            tokens: from `tokens`; for an image with one token for it, which is repeated for each of the image's tokens.
            layer: counted from the end: -1 are the states after the final norm, -3 those before the last two layers.
            image: `[1, 3, H, W]` in [0, 1], or None.

        Returns:
            `[1, L, width]` on the network's device; L counts all tokens of the image.
        """
        device = self._network.device
        inputs: dict[str, Tensor] = {}
        if image is not None:
            assert self._image_token is not None
            place = tokens.index(self._image_token)
            tokens = [*tokens[:place], *[self._image_token] * IMAGE_TOKENS, *tokens[place + 1 :]]
            # LLaVA's processor keeps the middle square of the image.
            pixels = clip_pixels(image.to(device), self._side, middle=True)
            inputs["pixel_values"] = pixels.to(self._network.dtype)
        if self._image_token is not None:
            inputs["logits_to_keep"] = 1  # type: ignore[assignment]
        ids = torch.tensor([tokens], device=device)
        states: Tensor = self._network(input_ids=ids, output_hidden_states=True, **inputs).hidden_states[layer]
        return states


class ClipL:
    """CLIP-L's text model. Its pooled output goes into the network's vector input."""

    def __init__(self, tokenizer: Any, network: Any) -> None:
        """Combine a tokenizer and a `CLIPTextModel`, which is on its device."""
        self.tokenizer = tokenizer
        self._network = network

    @torch.no_grad()
    def pooled(self, text: str) -> Tensor:
        """Return the pooled text `[1, width]`. It sees the first 77 tokens, as in every release."""
        ids = self.tokenizer(
            text, padding="max_length", max_length=_POOLED_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        pooled: Tensor = self._network(ids.to(self._network.device)).pooler_output
        return pooled


def load_llama(pipeline: Path, device: torch.device, dtype: torch.dtype, *templates: tuple[str, int]) -> Llama:
    """Load the language model of a HunyuanVideo pipeline.

    Args:
        pipeline: folder of the pipeline.
        device: where to put it.
        dtype: dtype of its weights.
        templates: texts that the tokenizer must keep, with `{}` for the prompt, and the number of tokens before it.

    Raises:
        CheckpointError: if a part cannot be loaded or is another one.
    """
    folder = pipeline / "text_encoder"
    tokenizer = _llama_tokenizer(pipeline / "tokenizer", templates)
    kind = LlavaForConditionalGeneration if has_llava(pipeline) else LlamaModel
    return Llama(tokenizer, load_network(kind, folder, device, dtype), folder)


def load_clip_l(pipeline: Path, device: torch.device, dtype: torch.dtype) -> ClipL:
    """Load CLIP-L of a HunyuanVideo pipeline.

    Args:
        pipeline: folder of the pipeline.
        device: where to put it.
        dtype: dtype of its weights.

    Raises:
        CheckpointError: if a part cannot be loaded.
    """
    tokenizer = load_tokenizer(AutoTokenizer, pipeline / "tokenizer_2")
    return ClipL(tokenizer, load_network(CLIPTextModel, pipeline / "text_encoder_2", device, dtype))


def _llama_tokenizer(folder: Path, templates: tuple[tuple[str, int], ...]) -> Any:
    """Load Llama 3's tokenizer, with the rules of its own file.

    Diffusers names the class LlamaTokenizerFast, which is Llama 2's. Under transformers 5 this class replaces the rules
    of the file by its own, and loses spaces and line breaks.

    Raises:
        CheckpointError: if the tokenizer changes a template, or splits it into another number of tokens.
    """
    tokenizer = load_tokenizer(FastTokenizer, folder)
    for template, wanted in templates:
        text, before = template.format(""), template.partition("{}")[0]
        kept = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False)
        count = len(tokenizer(before).input_ids)
        if kept != text or count != wanted:
            raise CheckpointError(
                f"The tokenizer in {folder} is not the one that HunyuanVideo was trained with. It splits the template "
                f"before the prompt into {count} tokens, expected {wanted}, and decodes the template as "
                f"{kept[:80]!r}... Download the folder again from a release of HunyuanVideo in diffusers' format "
                f"(tokenizer.json is Llama 3's)."
            )
    return tokenizer

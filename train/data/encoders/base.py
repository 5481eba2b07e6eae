"""What all text encoders share: their protocol, and the checks of captions."""

from typing import Any, Protocol

from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.prompt_templates import TITLES, PromptTemplate, needs_image


class PromptError(MagicDistillError):
    """Raised when a caption cannot be encoded as it is, or when an encoder does not fit the model."""


class TextEncoder(Protocol):
    """An encoder of captions for one prompt template."""

    @property
    def template(self) -> PromptTemplate:
        """The prompt template, which also states whether `encode` needs an image (`prompt_templates.needs_image`)."""

    def encode(self, caption: str, image: Tensor | None = None, /) -> NullPrompt:
        """Encode one caption.

        Args:
            caption: the text; "" is the empty prompt.
            image: the start image `[1, 3, H, W]` in [0, 1], for a template that needs one; else None.

        Returns:
            The text conditioning on the encoder's device and in its dtype, without padding.

        Raises:
            PromptError: if the caption is too long for the model or contains control tokens of a tokenizer, or if an
                image is missing or not needed.
        """


def check_image(template: PromptTemplate, image: Tensor | None) -> None:
    """Check that an image is given where the template needs one, and only there.

    Args:
        template: the prompt template.
        image: the image, or None.

    Raises:
        PromptError: if the image is missing or not needed.
    """
    needed = needs_image(template)
    if needed and image is None:
        raise PromptError(
            f"The prompt template of {TITLES[template]} shows the start image to the language model, but there is no "
            f"image. Name one (--image), or use the template hunyuan_video for the text alone."
        )
    if not needed and image is not None:
        raise PromptError(
            f"The prompt template of {TITLES[template]} uses the text alone, so the image is not needed. Leave it out."
        )


def check_caption(caption: str, *tokenizers: Any) -> None:
    """Refuse captions with the spelling of a tokenizer's control token, such as `<image>`.

    The tokenizer would read such a word as the token, and the language model would get another conversation.

    Args:
        caption: the text.
        tokenizers: tokenizers of transformers.

    Raises:
        PromptError: if there is one.
    """
    for tokenizer in tokenizers:
        found = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in caption]
        if found:
            raise PromptError(
                f"The caption {shortened(caption)} contains {max(found, key=len)!r}, which the text encoder reads as a "
                f"control token. Remove it from the caption."
            )


def check_length(caption: str, tokens: int, limit: int, template: PromptTemplate) -> None:
    """Refuse captions that a model cannot read to their end.

    Args:
        caption: the text, for the message.
        tokens: its number of tokens.
        limit: the number of tokens that the model reads.
        template: the prompt template, for the message.

    Raises:
        PromptError: if `tokens` is above `limit`.
    """
    if tokens > limit:
        raise PromptError(
            f"The caption {shortened(caption)} has {len(caption.split())} words, which are {tokens} tokens. "
            f"{TITLES[template]} reads at most {limit} tokens. Shorten it to about {limit * 7 // 10} words."
        )


def shortened(caption: str) -> str:
    """Return a caption for an error message: in quotes, on one line, and cut after 60 characters."""
    line = " ".join(caption.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")

"""The vocabulary of the pocket model: a caption for each direction, and what a text encoder would make of it.

A caption consists of one word group for each attribute of a `Direction`, such as "turns left, speaks, does not blink".
The project encodes these captions itself: each word group has one fixed random vector. Model files and LoRAs that were
trained with captions carry the text states of all of them, so only the making of datasets needs this module.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np
import torch

from ..families.base import NullPrompt
from .motion import Direction

# The sizes of the text conditioning that the pocket networks read.
TEXT_TOKENS, TEXT_DIM, POOLED_DIM = 4, 64, 768
# Standard deviation of text states and pooled text, also of the null prompt.
PROMPT_SCALE = 0.1

# What a caption says for each value of each attribute, in the order of the caption and of `Direction`.
WORDS: Mapping[str, Mapping[object, str]] = {
    "turn": {"left": "turns left", "still": "keeps still", "right": "turns right"},
    "speaks": {True: "speaks", False: "is silent"},
    "blinks": {True: "blinks", False: "does not blink"},
}
DIRECTIONS: tuple[Direction, ...] = tuple(
    Direction(**dict(zip(WORDS, values, strict=True)))  # type: ignore[arg-type]
    for values in product(*WORDS.values())
)


def words_of(direction: Direction) -> list[str]:
    """Return the word groups of a direction, one for each attribute."""
    return [words[getattr(direction, attribute)] for attribute, words in WORDS.items()]


def caption_of(direction: Direction) -> str:
    """Return the caption of a direction: "turns left, speaks, blinks" and so on."""
    return ", ".join(words_of(direction))


def prompt_of(direction: Direction) -> NullPrompt:
    """Return the text conditioning of a direction's caption, in float32.

    It is the sum of the vectors of its word groups, divided by the square root of their number. Two captions that
    differ in one word group are therefore 0.8 standard deviations apart, in root mean square, and each word group adds
    the same vector in every caption.

    Args:
        direction: what the person does.

    Returns:
        Text states `[1, 4, 64]` and pooled text `[1, 768]`, with a standard deviation of `PROMPT_SCALE` as the pocket
        null prompt has.
    """
    words = words_of(direction)
    vector = PROMPT_SCALE / len(words) ** 0.5 * np.sum([_vector(word) for word in words], axis=0)
    text, pooled = torch.from_numpy(vector).float().split([TEXT_TOKENS * TEXT_DIM, POOLED_DIM])
    return NullPrompt(text.view(1, TEXT_TOKENS, TEXT_DIM).clone(), pooled[None].clone())


def _vector(word: str) -> np.ndarray:
    """Return the fixed normal numbers of a word group: its text states, then its pooled text."""
    generator = np.random.default_rng(list(word.encode()))
    return generator.standard_normal(TEXT_TOKENS * TEXT_DIM + POOLED_DIM)

"""Captions of pocket portraits in a dataset: which direction each portrait follows, and the texts of the index."""

import hashlib

import numpy as np

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.pocket.motion import Direction, sample_direction
from magicdistill_core.pocket.vocabulary import DIRECTIONS, caption_of, prompt_of

from ..data.text_index import TextIndex

# Last part of the key of a direction's random numbers. The keys of futures have two parts.
_KEY = 1


def drawn_direction(seed: int) -> Direction:
    """Return the direction that a captioned portrait follows, as often as in portraits without captions.

    Args:
        seed: the portrait's seed.
    """
    return sample_direction(np.random.default_rng((seed, 0, _KEY)))


def encode_caption(caption: str) -> NullPrompt:
    """Return the text conditioning of a caption of the vocabulary.

    Args:
        caption: from `caption_of`.
    """
    return prompt_of({caption_of(direction): direction for direction in DIRECTIONS}[caption])


def vocabulary_index() -> TextIndex:
    """Return the description of the vocabulary for a dataset's index. Another vocabulary has another identity."""
    digest = hashlib.sha256()
    for direction in DIRECTIONS:
        prompt = prompt_of(direction)
        digest.update(caption_of(direction).encode())
        for tensor in (prompt.text_states, prompt.pooled):
            assert tensor is not None
            digest.update(tensor.numpy().tobytes())
    return TextIndex(encoder_sha256=digest.hexdigest())

"""How often clips do what their captions say, with exact intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from magicdistill_core.metrics.binomial import binomial_interval
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.vocabulary import WORDS, caption_of

# The row of clips that follow their complete caption.
WHOLE = "whole caption"


@dataclass(frozen=True)
class Obeyed:
    """Shares of clips that do what they were told. Every share has its 95 % interval.

    Attributes:
        attributes: for each attribute of a direction, and for the whole caption.
        words: for each word group of the vocabulary, among the clips that were told it.
        captions: for each caption that was told, all attributes together.
        clips: number of clips.
    """

    attributes: dict[str, Interval]
    words: dict[str, Interval]
    captions: dict[str, Interval]
    clips: int


def obeyed(told: Sequence[Direction], seen: Sequence[Direction]) -> Obeyed:
    """Compare what clips show with what they were told. The clips must be independent of each other.

    Args:
        told: the direction of each clip's caption.
        seen: the direction read back from each clip, in the same order.

    Raises:
        ValueError: if there are no clips, or the numbers differ.
    """
    pairs = list(zip(told, seen, strict=True))
    right = {
        attribute: [getattr(one, attribute) == getattr(other, attribute) for one, other in pairs] for attribute in WORDS
    }
    attributes = {attribute: _share(hits) for attribute, hits in right.items()}
    words = {}
    for attribute, said in WORDS.items():
        for value, word in said.items():
            hits = [
                hit for hit, (one, _) in zip(right[attribute], pairs, strict=True) if getattr(one, attribute) == value
            ]
            if hits:
                words[word] = _share(hits)
    captions: dict[str, list[bool]] = {}
    for one, other in pairs:
        captions.setdefault(caption_of(one), []).append(one == other)
    return Obeyed(
        attributes | {WHOLE: _share([one == other for one, other in pairs])},
        words,
        {caption: _share(hits) for caption, hits in captions.items()},
        len(pairs),
    )


def _share(hits: Sequence[bool]) -> Interval:
    return binomial_interval(sum(hits), len(hits))

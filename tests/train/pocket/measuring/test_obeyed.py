"""Shares of clips that do what they were told: counted for attributes, word groups and captions."""

from dataclasses import replace

import pytest

from magicdistill_core.metrics.binomial import binomial_interval
from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.vocabulary import DIRECTIONS, WORDS
from train.pocket.measuring.obeyed import WHOLE, obeyed

TOLD = [direction for direction in DIRECTIONS for _ in range(5)]


def test_clips_that_do_what_they_are_told() -> None:
    found = obeyed(TOLD, TOLD)
    assert found.clips == 60
    assert {share.mean for shares in (found.attributes, found.words, found.captions) for share in shares.values()} == {
        1
    }
    assert len(found.words) == 7
    assert len(found.captions) == 12
    assert found.attributes["turn"] == binomial_interval(60, 60)
    assert found.captions["turns left, speaks, blinks"] == binomial_interval(5, 5)


def test_clips_that_ignore_their_captions_are_right_by_chance_only() -> None:
    found = obeyed(TOLD, [Direction("left", True, True)] * len(TOLD))
    means = {name: share.mean for name, share in found.attributes.items()}
    assert means == pytest.approx({"turn": 1 / 3, "speaks": 1 / 2, "blinks": 1 / 2, WHOLE: 1 / 12})
    assert {word: found.words[word].mean for word in WORDS["turn"].values()} == {
        "turns left": 1,
        "keeps still": 0,
        "turns right": 0,
    }


def test_an_error_counts_for_its_attribute_its_word_and_its_caption_only() -> None:
    seen = [replace(TOLD[0], blinks=not TOLD[0].blinks), *TOLD[1:]]
    found = obeyed(TOLD, seen)
    assert found.attributes == {
        "turn": binomial_interval(60, 60),
        "speaks": binomial_interval(60, 60),
        "blinks": binomial_interval(59, 60),
        WHOLE: binomial_interval(59, 60),
    }
    assert (found.words["blinks"], found.words["does not blink"]) == (
        binomial_interval(29, 30),
        binomial_interval(30, 30),
    )
    assert [share.mean for share in found.captions.values()] == [0.8, *([1.0] * 11)]
    with pytest.raises(ValueError, match="shorter"):
        obeyed(TOLD, seen[1:])

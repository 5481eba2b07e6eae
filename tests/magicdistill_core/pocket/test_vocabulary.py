"""The pocket vocabulary: one caption for each direction, and text conditioning that tells the captions apart."""

from itertools import combinations

import pytest
import torch

from magicdistill_core.captions import MAX_CAPTIONS, caption_tensors, pop_captions
from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.pocket.files import TEACHER
from magicdistill_core.pocket.motion import TURNS, Direction
from magicdistill_core.pocket.vocabulary import DIRECTIONS, PROMPT_SCALE, caption_of, prompt_of, words_of


def flat(direction: Direction) -> torch.Tensor:
    prompt = prompt_of(direction)
    assert prompt.pooled is not None
    return torch.cat([prompt.text_states.flatten(), prompt.pooled.flatten()])


def test_there_is_one_caption_for_each_direction() -> None:
    assert len(DIRECTIONS) == len(set(DIRECTIONS)) == len(TURNS) * 2 * 2 <= MAX_CAPTIONS
    assert len({caption_of(direction) for direction in DIRECTIONS}) == len(DIRECTIONS)
    assert caption_of(Direction("left", speaks=True, blinks=False)) == "turns left, speaks, does not blink"
    assert caption_of(Direction("still", speaks=False, blinks=True)) == "keeps still, is silent, blinks"


def test_captions_have_the_shapes_and_the_scale_of_the_shipped_null_prompt() -> None:
    null = load_checkpoint(TEACHER).null_prompt
    assert null is not None
    assert null.pooled is not None
    for direction in DIRECTIONS:
        prompt = prompt_of(direction)
        assert prompt.pooled is not None
        for ours, theirs in ((prompt.text_states, null.text_states), (prompt.pooled, null.pooled)):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.2)


def test_captions_are_far_apart_and_the_same_in_every_process() -> None:
    """Captions that share two of three word groups are sqrt(2/3) standard deviations apart, others further."""
    for one, other in combinations(DIRECTIONS, 2):
        different = sum(a != b for a, b in zip(words_of(one), words_of(other), strict=True))
        distance = float((flat(one) - flat(other)).square().mean().sqrt()) / PROMPT_SCALE
        assert distance == pytest.approx((2 * different / 3) ** 0.5, rel=0.1)
    first = flat(DIRECTIONS[0])
    assert torch.equal(first, flat(DIRECTIONS[0]))
    # Files contain these numbers. With other ones, an old dataset and a new one would contradict each other.
    torch.testing.assert_close(first[:3], torch.tensor([0.0654494, -0.0345927, -0.0447471]), atol=1e-6, rtol=0)


def test_a_word_group_adds_the_same_vector_in_every_caption() -> None:
    def change(speaks: bool, blinks: bool) -> torch.Tensor:
        return flat(Direction("left", speaks, blinks)) - flat(Direction("right", speaks, blinks))

    for speaks, blinks in ((True, False), (False, True), (False, False)):
        torch.testing.assert_close(change(True, True), change(speaks, blinks), atol=1e-6, rtol=0)


def test_the_vocabulary_survives_a_file() -> None:
    captions = {caption_of(direction): prompt_of(direction) for direction in DIRECTIONS}
    tensors = caption_tensors(captions)
    read = pop_captions(tensors)
    assert not tensors
    assert read.keys() == captions.keys()
    assert all(torch.equal(read[caption].text_states, captions[caption].text_states) for caption in captions)

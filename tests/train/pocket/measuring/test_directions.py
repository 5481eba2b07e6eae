"""Directions are read back from the motion: exactly from true motion, and nearly so from noisy readings."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.vocabulary import DIRECTIONS
from train.pocket.measuring.directions import Cues, Thresholds, cues_of, fit_thresholds, read_directions
from train.pocket.measuring.reader.quantities import MIRRORED, MOTION

from .motions import true_motion

COUNT = 240
TOLD = [DIRECTIONS[number % len(DIRECTIONS)] for number in range(COUNT)]


@pytest.fixture(scope="module")
def known() -> Tensor:
    return true_motion(range(COUNT), TOLD)


@pytest.fixture(scope="module")
def others() -> Tensor:
    return true_motion(range(5000, 5000 + COUNT), TOLD)


def noisy(motion: Tensor, seed: int) -> Tensor:
    """Readings with errors: 0.03 radians of yaw, 0.02 head units of the mouth, and 0.15 of the eyelids' closure."""
    scale = torch.zeros(len(MOTION))
    for name, error in (("yaw", 0.03), ("mouth", 0.02), ("blink", 0.15)):
        scale[MOTION.index(name)] = error
    return motion + scale * torch.randn(motion.shape, generator=torch.Generator().manual_seed(seed))


def test_true_motion_is_read_without_errors(known: Tensor, others: Tensor) -> None:
    assert read_directions(cues_of(others), fit_thresholds(cues_of(known), TOLD)) == TOLD


def test_noisy_readings_are_read_almost_without_errors(known: Tensor, others: Tensor) -> None:
    found = read_directions(cues_of(noisy(others, 1)), fit_thresholds(cues_of(noisy(known, 2)), TOLD))
    right = [seen == told for seen, told in zip(found, TOLD, strict=True)]
    assert 0.9 < sum(right) / COUNT < 1


def test_the_mirrored_motion_turns_to_the_other_side(known: Tensor) -> None:
    flipped = known.clone()
    for name in MIRRORED:
        flipped[..., MOTION.index(name)] *= -1
    other = {"left": "right", "right": "left", "still": "still"}
    found = read_directions(cues_of(flipped), fit_thresholds(cues_of(known), TOLD))
    assert found == [replace(told, turn=other[told.turn]) for told in TOLD]


def test_a_still_and_silent_clip_with_open_eyes_shows_nothing(known: Tensor) -> None:
    """Also if the first frame looks to the side and its mouth is open, as long as the mouth closes at once."""
    motion = torch.zeros(1, 17, len(MOTION))
    motion[..., MOTION.index("yaw")] = 0.1
    motion[:, :5, MOTION.index("mouth")] = 0.16
    (found,) = read_directions(cues_of(motion), fit_thresholds(cues_of(known), TOLD))
    assert found == Direction("still", speaks=False, blinks=False)


def test_one_wrong_reading_of_a_frame_changes_nothing(known: Tensor) -> None:
    thresholds = fit_thresholds(cues_of(known), TOLD)
    motion = torch.zeros(1, 17, len(MOTION))
    motion[0, 9, MOTION.index("mouth")] = 0.3
    motion[0, 12, MOTION.index("blink")] = 1.0
    (found,) = read_directions(cues_of(motion), thresholds)
    assert found == Direction("still", speaks=False, blinks=False)


def test_thresholds_lie_in_the_middle_of_the_gap_and_count_both_groups_alike() -> None:
    """With 1 of 8 speaking clips below the silent ones, and one silent clip above half of the speaking ones."""
    speaks = [True] * 8 + [False] * 2
    speech = torch.tensor([0.0, 0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.1, 0.335])
    directions = [Direction("left" if n % 2 else "still", speaks=s, blinks=bool(n % 2)) for n, s in enumerate(speaks)]
    cues = Cues(torch.tensor([0.0, -1.0] * 5), speech, torch.tensor([0.2, 0.6] * 5))
    found = fit_thresholds(cues, directions)
    # Errors at 0.2: 1/8 and 1/2. Every threshold above the second silent clip loses 5/8 of the speaking ones.
    assert (found.turn, found.blink) == (pytest.approx(0.5), pytest.approx(0.4))
    assert found.speech == pytest.approx(0.2)


def test_an_attribute_without_both_values_is_an_error() -> None:
    cues = Cues(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    told = [Direction("still", False, False), Direction("still", True, True)]
    with pytest.raises(ValueError, match="Found 0 of 2 clips"):
        fit_thresholds(cues, told)


def test_each_threshold_decides_its_own_attribute() -> None:
    cues = Cues(torch.tensor([-0.2, 0.05, 0.2]), torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.9, 0.1, 0.6]))
    assert read_directions(cues, Thresholds(turn=0.1, speech=0.15, blink=0.5)) == [
        Direction("left", speaks=False, blinks=True),
        Direction("still", speaks=False, blinks=False),
        Direction("right", speaks=True, blinks=True),
    ]

"""Drift sees what changed, in the unit that it says, and a limit is exceeded by exactly what exceeds it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.long_video.drift import (
    Drift,
    FrameNumbers,
    Limits,
    drift_between,
    embedding_of,
    first_numbers,
    numbers_of,
    video_drift,
)

CLIP = torch.rand(20, 16, 16, 3, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25


def means(pictures: Tensor) -> Tensor:
    """A network whose embedding is the mean colour."""
    return pictures.mean(dim=(2, 3))


def test_numbers_are_those_of_a_plain_computation() -> None:
    numbers = numbers_of(CLIP)
    assert numbers.green[3] == pytest.approx(255 * CLIP[3, ..., 1].mean().item(), rel=1e-5)
    gray = CLIP[3].mean(dim=-1)
    assert numbers.contrast[3] == pytest.approx(255 * gray.std().item(), rel=1e-5)
    inside = [
        abs(gray[y, x] - (gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1]) / 4)
        for y in range(1, 15)
        for x in range(1, 15)
    ]
    assert numbers.sharpness[3] == pytest.approx(255 * float(sum(inside)) / len(inside), rel=0.15)
    assert numbers.identity == []


def test_each_change_is_seen_by_its_own_number() -> None:
    clean = numbers_of(CLIP)
    redder = drift_between(clean, numbers_of(CLIP + torch.tensor([0.04, 0, 0])))
    assert redder.colour == pytest.approx(0.04 * 255, rel=1e-4)
    assert redder.sharpness == pytest.approx(1, abs=1e-4)
    flatter = drift_between(clean, numbers_of((CLIP - 0.5) * 0.8 + 0.5))
    assert flatter.contrast == pytest.approx(0.8, rel=1e-4)
    blurred = F.avg_pool2d(CLIP.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    assert drift_between(clean, numbers_of(blurred)).sharpness < 0.6
    assert drift_between(clean, clean) == Drift(0, 1, 1, None)


def test_identity_is_the_cosine_with_the_portrait() -> None:
    portrait = torch.ones(8, 8, 3) * torch.tensor([1.0, 0, 0])
    frames = torch.stack([portrait, portrait.flip(-1)])
    numbers = numbers_of(frames, means, embedding_of(portrait, means))
    assert numbers.identity == pytest.approx([1.0, 0.0])


def test_a_video_is_judged_by_its_ends() -> None:
    numbers = FrameNumbers(*(list(map(float, range(100))) for _ in range(5)))
    assert video_drift(numbers).colour == 85  # the mean of 85 to 99, minus the mean of 0 to 14
    assert first_numbers(numbers, 3).red == [0, 1, 2]
    assert len((numbers + numbers).sharpness) == 200


@pytest.mark.parametrize(
    ("limits", "drift", "exceeds"),
    [
        (Limits(), Drift(99, 0.1, 0.1, -1), False),
        (Limits(colour=5), Drift(4.9, 1, 1), False),
        (Limits(colour=5), Drift(5.1, 1, 1), True),
        (Limits(sharpness=0.5), Drift(0, 1, 0.6), False),
        (Limits(sharpness=0.5), Drift(0, 1, 0.4), True),
        (Limits(sharpness=0.5), Drift(0, 1, 2.1), True),
        (Limits(identity=0.8), Drift(0, 1, 1, 0.7), True),
        (Limits(identity=0.8), Drift(0, 1, 1, 0.9), False),
        (Limits(identity=0.8), Drift(0, 1, 1, None), False),
    ],
)
def test_limits(limits: Limits, drift: Drift, exceeds: bool) -> None:
    assert (limits.excess(drift) > 0) == exceeds


def test_the_worse_of_two_segments_exceeds_more() -> None:
    limits = Limits(colour=5, sharpness=0.5)
    assert limits.excess(Drift(20, 1, 1)) > limits.excess(Drift(6, 1, 1)) > 0

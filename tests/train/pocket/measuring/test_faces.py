"""Measures of faces, on readings that are written down."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from train.pocket.measuring.faces import identity_kept, intact_share, motion_distance
from train.pocket.measuring.late import last_third
from train.pocket.measuring.reader.quantities import MOTION
from train.pocket.measuring.reader.reading import Readings


def readings(motion: Tensor, whole: Tensor | None = None, identity: Tensor | None = None) -> Readings:
    """Readings with a given motion `[B, T, 7]`."""
    shape = motion.shape[:2]
    return Readings(
        **dict(zip(MOTION, motion.unbind(-1), strict=True)),
        whole=torch.ones(shape) if whole is None else whole,
        identity=torch.zeros(*shape, 4) if identity is None else identity,
    )


def still(clips: int, frames: int = 17) -> Readings:
    return readings(torch.zeros(clips, frames, len(MOTION)))


def walks(clips: int, seed: int, size: float = 1.0, start: float = 0.0) -> Readings:
    """Smooth random motions that begin at `start`."""
    steps = torch.randn(clips, 17, len(MOTION), generator=torch.Generator().manual_seed(seed))
    return readings(start + size * steps.cumsum(dim=1))


def test_the_last_third() -> None:
    assert list(range(17))[last_third(17)] == [11, 12, 13, 14, 15, 16]
    assert list(range(9))[last_third(9)] == [6, 7, 8]


def test_intact_share_counts_late_frames() -> None:
    whole = torch.ones(3, 17)
    whole[0, 11:14] = 0.49
    whole[1, :11] = 0.1
    whole[2] = 0.5
    given = replace(still(3), whole=whole)
    assert intact_share(given).tolist() == [0.5, 1.0, 1.0]
    assert intact_share(given, only_late=False).tolist() == pytest.approx([14 / 17, 6 / 17, 1.0])


def test_identity_is_kept_within_distance_one_of_the_true_clip() -> None:
    truth = replace(still(2), identity=torch.randn(2, 17, 4, generator=torch.Generator().manual_seed(0)))
    center = truth.identity.mean(dim=1, keepdim=True)
    made = center.expand(2, 17, 4).clone()
    made[0, 11:13] += 1.01
    made[0, 13:] += 0.99
    made[1, :11] += 5  # early frames do not count
    kept = identity_kept(replace(still(2), identity=made), truth)
    assert kept.tolist() == pytest.approx([4 / 6, 1.0])
    with pytest.raises(ValueError, match="2 clips and 1 true"):
        identity_kept(replace(still(2), identity=made), truth.clips(slice(1)))


def test_motion_distance_is_zero_for_the_same_motion_and_grows_with_the_difference() -> None:
    data = walks(400, 0)
    same, half, none = (motion_distance(walks(400, 1, size), data) for size in (1.0, 0.5, 0.0))
    assert abs(same) < 0.01
    assert same < 0.03 < half < none
    # Where the head is in the first frame belongs to the start image, not to the motion.
    assert motion_distance(walks(400, 1, start=3.0), data) == pytest.approx(same, abs=1e-4)


def test_motion_distance_counts_every_quantity_alike() -> None:
    """The units do not matter: gaze moves by hundredths of a head, blinks by one."""
    units = torch.logspace(-3, 3, len(MOTION))
    data, made = walks(50, 0), walks(50, 1, 0.7)
    scaled = [readings(each.motion * units) for each in (made, data)]
    assert motion_distance(*scaled) == pytest.approx(motion_distance(made, data), rel=1e-4)

"""What a person does in a clip, read back from the clip: the direction, from yaw, mouth and eyelids in every frame.

Each attribute of a `Direction` has one number per clip, its *cue*, which a threshold turns into a decision. The
thresholds are chosen on rendered clips, whose directions are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.render import FRAMES_PER_SECOND

from .reader.quantities import MOTION

# A turn is complete at the end of a clip. The mean over these frames averages out a part of the reader's errors.
_LAST = 4
# A silent mouth that was open has closed after 0.2 s.
_CLOSED_AFTER = 0.25
# Not the largest value, which a single wrong reading may be.
_PEAK = 0.9


@dataclass(frozen=True)
class Cues:
    """One number per clip and attribute.

    Attributes:
        turn: yaw in the last frames minus yaw in the first frame, in radians, `[B]`; negative turns left.
        speech: how far the mouth opens after a silent one has closed, in head units, `[B]`.
        blink: how far the eyelids close, from 0 to 1, `[B]`.
    """

    turn: Tensor
    speech: Tensor
    blink: Tensor


@dataclass(frozen=True)
class Thresholds:
    """The values of the cues that separate the directions.

    Attributes:
        turn: a head whose cue is smaller than this on both sides keeps still.
        speech: a mouth with a larger cue speaks.
        blink: eyes with a larger cue blink.
    """

    turn: float
    speech: float
    blink: float


def cues_of(motion: Tensor) -> Cues:
    """Return the cues of clips.

    Args:
        motion: the motion in every frame, `[B, T, 7]` in the order of `quantities.MOTION`: true, or `Readings.motion`.
    """
    yaw, mouth, blink = (motion[..., MOTION.index(name)] for name in ("yaw", "mouth", "blink"))
    closed = int(_CLOSED_AFTER * FRAMES_PER_SECOND)
    return Cues(
        turn=yaw[:, -_LAST:].mean(dim=1) - yaw[:, 0],
        speech=mouth[:, closed:].quantile(_PEAK, dim=1),
        blink=blink.quantile(_PEAK, dim=1),
    )


def fit_thresholds(cues: Cues, directions: Sequence[Direction]) -> Thresholds:
    """Choose the thresholds with the smallest share of errors, where every value of an attribute counts alike.

    Args:
        cues: of rendered clips, seen through the VAE.
        directions: what the clips show. Each attribute must have all its values.

    Raises:
        ValueError: if an attribute has only one value.
    """
    turns = torch.tensor([direction.turn != "still" for direction in directions])
    speaks = torch.tensor([direction.speaks for direction in directions])
    blinks = torch.tensor([direction.blinks for direction in directions])
    return Thresholds(
        _separating(cues.turn.abs(), turns), _separating(cues.speech, speaks), _separating(cues.blink, blinks)
    )


def _separating(values: Tensor, above: Tensor) -> float:
    """Return the threshold that separates two groups of values best, in the middle of its gap.

    Args:
        values: `[N]`.
        above: `[N]`, True for values that should be larger.

    Raises:
        ValueError: if a group is empty.
    """
    larger, count = int(above.sum()), len(above)
    if not 0 < larger < count:
        raise ValueError(f"Found {larger} of {count} clips with a value. Expected clips with it and without it.")
    order = values.double().argsort()
    ordered, is_larger = values.double()[order], above[order].double()
    # With the threshold after value n: the larger ones below it, and the smaller ones above it.
    missed = is_larger.cumsum(0)[:-1] / larger + (1 - (1 - is_larger).cumsum(0)[:-1] / (count - larger))
    # Equal values cannot be separated.
    missed[ordered[1:] == ordered[:-1]] = torch.inf
    place = int(missed.argmin())
    return float((ordered[place] + ordered[place + 1]) / 2)


def read_directions(cues: Cues, thresholds: Thresholds) -> list[Direction]:
    """Return what the clips show.

    Args:
        cues: of the clips.
        thresholds: from `fit_thresholds`.
    """
    return [
        Direction(
            turn="still" if abs(turn) < thresholds.turn else "left" if turn < 0 else "right",
            speaks=speech > thresholds.speech,
            blinks=blink > thresholds.blink,
        )
        for turn, speech, blink in zip(cues.turn.tolist(), cues.speech.tolist(), cues.blink.tolist(), strict=True)
    ]

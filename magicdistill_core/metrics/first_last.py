"""Drift of a curve: its end against its beginning, in both definitions in use."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

_SHARE = 0.15
_SECONDS = 5.0


@dataclass(frozen=True)
class FirstLast:
    """How much the mean of a curve's end differs from that of its beginning, `last - first`.

    Attributes:
        share: the last 15 % of the frames against the first 15 % (Helios); None without a value in both.
        seconds: the last 5 seconds against the first 5 seconds (Rolling Forcing); None if the video is shorter than 10
            seconds, because the two would overlap.
    """

    share: float | None
    seconds: float | None


def first_last(curve: Sequence[float], fps: float) -> FirstLast:
    """Return the drift of a curve.

    Args:
        curve: one value per frame, or per sampled frame; values that are not finite are left out.
        fps: values per second.
    """
    count = max(1, round(_SHARE * len(curve)))
    seconds = round(_SECONDS * fps)
    long_enough = len(curve) >= 2 * seconds > 0
    return FirstLast(
        _difference(curve, count) if len(curve) >= 2 else None,
        _difference(curve, seconds) if long_enough else None,
    )


def _difference(curve: Sequence[float], count: int) -> float | None:
    first = [value for value in curve[:count] if isfinite(value)]
    last = [value for value in curve[-count:] if isfinite(value)]
    return sum(last) / len(last) - sum(first) / len(first) if first and last else None

"""The times of a stream's frames. Files can state times that jump, stand still, go back, or are missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import fmean, median

import av

# A picture that is shown longer than this is followed by a gap. Phones that lower their frame rate in the dark stay
# below it, and 0.2 s are 6 frames of a window at 30 frames per second.
_GAP_INTERVALS = 5
SHORTEST_GAP = 0.2
# Limits for jumps that are believed. In streams that may begin anew (MPEG-TS and MPEG-PS), FFmpeg's limit is 10 s, too.
# In other files, a screen recording can show one picture for minutes.
_LONGEST_JUMP_OF_STREAM = 10.0
_LONGEST_JUMP = 3600.0
_SLACK = 1.0
# The average frame rate that a file states is not believed if the times contradict it by this factor: it is an average
# over gaps, or a unit of time instead of a rate.
_CONTRADICTION = 2.5
_MAX_DENOMINATOR = 1001


@dataclass(frozen=True)
class Pace:
    """How fast the frames of a stream follow each other.

    Attributes:
        rate: frames per second.
        interval: usual time from a frame to the next, in seconds.
    """

    rate: Fraction
    interval: float

    @property
    def gap(self) -> float:
        """The shortest time between two frames, in seconds, that makes them unconnected."""
        return max(SHORTEST_GAP, _GAP_INTERVALS * self.interval)


def measure_pace(stated: Fraction | None, times: Sequence[float]) -> Pace | None:
    """Return the pace of a stream; None if neither its rate nor its times tell it.

    Args:
        stated: the average rate that the file states; None if it states none.
        times: times of some consecutive packets, in decoding order, in seconds.
    """
    steps = [b - a for a, b in pairwise(times) if b > a]
    if not steps:
        return Pace(stated, float(1 / stated)) if stated and stated > 0 else None
    interval = median(steps)
    if stated and 1 / _CONTRADICTION < stated * interval < _CONTRADICTION:
        return Pace(stated, interval)
    usual = fmean(step for step in steps if step < 2 * interval)
    rate = Fraction(1 / usual)
    return Pace(rate.limit_denominator(_MAX_DENOMINATOR) if rate > 1 else rate, interval)


def may_restart(container: av.container.InputContainer) -> bool:
    """Return whether the file's format is a transmission that may begin anywhere, and anew (MPEG-TS, MPEG-PS).

    Args:
        container: the opened file.
    """
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


class Clock:
    """Turns the times that a file states into times that always increase.

    - A frame without a time follows the frame before it after the usual interval. So does a frame whose time is not
      later than the time of the frame before it.
    - Where times go back, the stream begins anew (files that were joined). Its new times continue the old ones.
    - A jump that cannot be true is removed: beyond the end of the file, or longer than an hour.
    """

    def __init__(self, pace: Pace, duration: float | None, restarts: bool) -> None:
        """Make a clock for one stream.

        Args:
            pace: the pace of the stream.
            duration: length that the file states, in seconds; None if it states none.
            restarts: whether streams of this file format may begin anew.
        """
        self._interval, self._gap = pace.interval, pace.gap
        self._longest = _LONGEST_JUMP_OF_STREAM if restarts or duration is None else _LONGEST_JUMP
        self._end = None if restarts or duration is None else duration + _SLACK
        self._offset = 0.0
        self._stated: float | None = None
        self._time: float | None = None

    @classmethod
    def of(cls, container: av.container.InputContainer, pace: Pace) -> "Clock":
        """Make the clock for a stream of an opened file.

        Args:
            container: the file.
            pace: the pace of the stream.
        """
        duration = None if container.duration is None else container.duration / av.time_base
        return cls(pace, duration, may_restart(container))

    def tick(self, stated: float | None) -> tuple[float, bool]:
        """Return the time of the next frame in seconds, and whether there is a gap before it.

        Args:
            stated: the time that the file states for the frame, in seconds; None if it states none.
        """
        before, latest = self._stated, self._time
        if stated is not None:
            self._stated = stated
        if latest is None:
            self._time = 0.0 if stated is None else stated
            return self._time, False
        following = latest + self._interval
        self._time = following if stated is None else stated + self._offset
        jump = self._time - latest
        back = stated is not None and before is not None and before - stated > self._gap
        if back or (jump > self._gap and self._is_damage(jump)):
            self._offset += following - self._time
            self._time = following
            return following, True
        if jump <= 0:
            self._time = following
        return self._time, jump > self._gap

    def _is_damage(self, jump: float) -> bool:
        assert self._time is not None
        return jump > self._longest or (self._end is not None and self._time > self._end)

"""How good a run is at a point: the metric that tells the best checkpoint, and from which update on it can tell."""

from collections.abc import Mapping
from statistics import median
from typing import Any

# A fall to this share of the highest is one that noise does not make.
_FALLEN = 0.5


class Measure:
    """The running median of a metric, lower is better, and the update from which on values may be compared.

    What a fake branch takes part in begins near nothing, because the branch is zero at first: real and fake score agree
    before anything was learned. So it rises to a peak, and only what comes after that is the better the lower it is.

    Attributes:
        since: checkpoints of earlier updates are not compared with later ones.
    """

    def __init__(self, window: int, *, rises_first: bool) -> None:
        """
        Args:
            window: rounds of which the median is taken.
            rises_first: whether a fake branch takes part in it.
        """
        self.since = 0
        self._window = window
        self._last: list[float] = []
        self._highest = 0.0
        self._rising = rises_first

    @property
    def value(self) -> float | None:
        """The median over the last rounds; None before the first."""
        return median(self._last) if self._last else None

    def observe(self, update: int, metric: float, *, healthy: bool) -> None:
        """Take in the round of update `update`.

        The peak is the highest median so far; one in a full window that lies at half of it or lower ends the search for
        a higher one. Rounds that the guard calls unhealthy are not searched: a collapse is no peak.
        """
        self._last = [*self._last, metric][-self._window :]
        if not self._rising or not healthy:
            return
        now, full = median(self._last), len(self._last) == self._window
        if not full or now >= self._highest:
            self._highest, self.since = now, update
        elif now <= _FALLEN * self._highest:
            self._rising = False

    def notes(self) -> dict[str, Any]:
        """What a resumed run needs to measure alike, as JSON."""
        return {"last": self._last, "highest": self._highest, "since": self.since, "rising": self._rising}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Take up what `notes` gave."""
        self._last = list(notes["last"])
        self._highest, self.since, self._rising = notes["highest"], notes["since"], notes["rising"]

"""The measure that selects the best checkpoint, and the first update from which its values are comparable.

A *round* is one generator update with the updates of the other networks before it.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any

# A fall to this fraction of the highest median is too large for noise.
_FALLEN = 0.5


class Measure:
    """The running median of a metric (lower is better), and the first update whose values are comparable.

    A metric that depends on a fake branch starts near zero. The branch is zero at first, so the real and the fake score
    agree before the branch has learned anything. The metric then rises to a peak. A low value means a good checkpoint
    only after this peak.

    Attributes:
        since: the first update whose checkpoint may be compared with later ones.
    """

    def __init__(self, window: int, *, rises_first: bool) -> None:
        """Start without any observation.

        Args:
            window: number of rounds in the running median.
            rises_first: whether the metric depends on a fake branch (the LoRA of the real and fake scores).
        """
        self.since = 0
        self._window = window
        self._last: list[float] = []
        self._highest = 0.0
        self._rising = rises_first

    @property
    def value(self) -> float | None:
        """The median over the last rounds; None before the first round."""
        return median(self._last) if self._last else None

    def observe(self, update: int, metric: float, *, healthy: bool) -> None:
        """Add the metric of one round.

        The peak is the highest median so far. The search for a higher one ends when the median over a full window falls
        to half of the peak or lower. Unhealthy rounds are not searched, because a high value there is a collapse.

        Args:
            update: number of generator updates made, this round's included.
            metric: value in this round.
            healthy: whether the guard has no finding.
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
        """Return the state as JSON data, for a resumed run."""
        return {"last": self._last, "highest": self._highest, "since": self.since, "rising": self._rising}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Restore the state that `notes` returned."""
        self._last = list(notes["last"])
        self._highest, self.since, self._rising = notes["highest"], notes["since"], notes["rising"]

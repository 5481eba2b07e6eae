"""The guard's rule for the energy score of validation samples: a rise above the best score so far is a collapse.

The energy score compares samples with the clip of their start image; lower is better. It sees what the losses do not:
samples can become dirty and torn while all losses stay in their usual range. The rule reads its *change*: the
difference from the score at the run's start, as a share of that score.
"""

from collections.abc import Mapping
from math import hypot, isfinite
from typing import Any

from ..config.run import GuardConfig


class EnergyRule:
    """The best change of the energy score so far, and the rise of the last one above it.

    A rise counts in standard errors of the difference, `sqrt(e^2 + e_best^2)`. If the scores are of the same start
    images, their difference varies less than that, so the rule is careful. Early in a run the samples hardly differ
    from those of the start, and a very small rise can be many standard errors. So a rise also has to be larger than
    `energy_margin`.

    Attributes:
        risen: whether the last energy score was more than `energy_rise` standard errors above the best one.
        last_good: the update of the last score that had not risen; 0, the start of the run, before the first one.
    """

    def __init__(self, settings: GuardConfig) -> None:
        """Start without any score.

        Args:
            settings: the configuration's section `guard`.
        """
        self.risen = False
        self.last_good = 0
        self._settings = settings
        self._best: tuple[float, float] | None = None

    def observe(self, update: int, energy: float, standard_error: float) -> tuple[tuple[str, ...], bool]:
        """Add the energy score of a validation.

        Args:
            update: number of the generator update after which the samples were made.
            energy: the change of the score since the start, lower is better.
            standard_error: its standard error, at least 0.

        Returns:
            The findings (a message, if the score has risen or is not finite), and whether the run must stop or roll
            back: after a jump at once, after a smaller rise if the previous score had risen too.
        """
        if not (isfinite(energy) and isfinite(standard_error)):
            self.risen = True
            return (f"the change of validation/energy is {energy} with a standard error of {standard_error}",), True
        if self._best is None or energy < self._best[0]:
            self._best = energy, standard_error
        best, best_error = self._best
        settings, error, rise = self._settings, hypot(standard_error, best_error), energy - best
        jumped = rise > max(settings.energy_jump * error, settings.energy_margin)
        rose_before, self.risen = self.risen, rise > max(settings.energy_rise * error, settings.energy_margin)
        self.risen |= jumped
        if not self.risen:
            self.last_good = update
            return (), False
        limit, errors = ("jump", settings.energy_jump) if jumped else ("rise", settings.energy_rise)
        allowed = max(errors * error, settings.energy_margin)
        message = (
            f"the samples become worse: at update {update} validation/energy is above the best one so far by "
            f"{rise:.1%} of its value at the start, and the limit is {allowed:.1%} (guard.energy_{limit}, "
            f"guard.energy_margin); lower generator_optimizer.lr, or raise data.micro_batch or data.accumulation"
        )
        return (message,), jumped or rose_before

    def notes(self) -> dict[str, Any]:
        """Return the state as JSON data, for a resumed run."""
        return {"risen": self.risen, "last_good": self.last_good, "best": self._best}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Restore the state that `notes` returned; an empty mapping is the state before the first score."""
        self.risen, self.last_good = notes.get("risen", False), notes.get("last_good", 0)
        best = notes.get("best")
        self._best = None if best is None else (best[0], best[1])

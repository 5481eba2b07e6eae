"""The measure that selects the best checkpoint: the energy score of a run's validations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Validated:
    """The result of one validation.

    Attributes:
        energy: mean energy score of the validation's clips, lower is better.
        difference: mean difference of the score from the start, clip by clip.
        standard_error: standard error of `difference`; infinite for a single clip.
        start: the mean energy score at the start.
        since: the update of the start.
    """

    energy: float
    difference: float
    standard_error: float
    start: float
    since: int


class EnergyRecord:
    """The energy scores at the run's start, from which all later ones are subtracted clip by clip.

    Clips differ more from each other than models do. The difference on the same clips and the same noise does not
    contain this. At the start the generator is the teacher, with the few steps of the generator (`one_step`: the
    few-step generator).

    Attributes:
        since: the update of the start: 0, or a later one if the clips of validation changed when the run was resumed.
            None before the first validation.
        last: the update of the newest validation; None before the first one.
    """

    def __init__(self, key: str) -> None:
        """Start without any validation.

        Args:
            key: identifies the clips, the noise and the schedule of validation. Only scores of one key are compared.
        """
        self.since: int | None = None
        self.last: int | None = None
        self._key = key
        self._start: list[float] = []

    def observe(self, update: int, energies: Sequence[float]) -> Validated:
        """Add a validation. The first one is the start.

        Args:
            update: number of generator updates made.
            energies: the energy score of each clip.
        """
        if self.since is None:
            self.since, self._start = update, list(energies)
        self.last = update
        now, start = (torch.tensor(values, dtype=torch.float64) for values in (energies, self._start))
        differences = now - start
        error = float(differences.std()) / math.sqrt(len(now)) if len(now) > 1 else math.inf
        return Validated(float(now.mean()), float(differences.mean()), error, float(start.mean()), self.since)

    def notes(self) -> dict[str, Any]:
        """Return the state as JSON data, for a resumed run."""
        return {"key": self._key, "since": self.since, "last": self.last, "start": self._start}

    def restore(self, notes: Mapping[str, Any] | None) -> None:
        """Restore the state that `notes` returned.

        Args:
            notes: the state. The record is empty without it, and with the state of another key.
        """
        self.since, self.last, self._start = None, None, []
        if notes is not None and notes["key"] == self._key:
            self.since, self.last, self._start = notes["since"], notes["last"], list(notes["start"])

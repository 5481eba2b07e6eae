"""The guard against collapse: it compares a run's metrics with limits and reports values outside them.

Distillation fails slowly and without an error: samples freeze, colours saturate, the fake score no longer follows the
generator, the real and the fake score drift apart. The guard compares medians over the last rounds with medians over
the run's first rounds, because absolute values differ between models and resolutions. The distance of the scores is
compared with the real score's error on the samples instead: it starts at zero with the branch and grows in a healthy
run too. The scalars of the rounds cannot see every collapse, so the guard also judges the energy score of the
validation (see `watch.energy_rule`).

The guard depends only on metrics. The training loop calls it after each round. A *round* is one generator update with
the updates of the other networks before it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..config.run import GuardConfig
from .energy_rule import EnergyRule

Row = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """A limit of one metric.

    Attributes:
        metric: name of the metric.
        limit: name of the field of `GuardConfig` that holds the limit.
        floor: True if the limit is the lowest allowed value, False if it is the highest.
        relative: whether the limit is a multiple of the metric's baseline.
        meaning: description of the failure, for messages.
        advice: settings that usually help, for messages.
    """

    metric: str
    limit: str
    floor: bool
    relative: bool
    meaning: str
    advice: str


_STRENGTH = "lower generator_optimizer.lr or method.a_weak"
_FAKE_SCORE = "lower generator_optimizer.lr, or raise method.fake_updates or fake_optimizer.lr"

RULES = (
    Rule("generator/motion", "motion_floor", True, True, "the samples stop moving", _STRENGTH),
    Rule("generator/temporal_variance", "variance_floor", True, True, "the samples become stills", _STRENGTH),
    Rule("generator/deviation", "deviation_ceiling", False, True, "the samples saturate", _STRENGTH),
    Rule("generator/deviation", "deviation_floor", True, True, "the samples wash out to one colour", _STRENGTH),
    Rule("generator/saturation", "saturation_ceiling", False, False, "latents leave their normal range", _STRENGTH),
    Rule(
        "generator/relative_distance",
        "relative_distance_ceiling",
        False,
        False,
        "real and fake score drift apart",
        _FAKE_SCORE,
    ),
    Rule("fake/loss", "fake_loss_ceiling", False, True, "the fake score cannot follow the generator", _FAKE_SCORE),
    Rule(
        "generator/guidance_ratio",
        "guidance_ceiling",
        False,
        False,
        "guidance dominates distribution matching",
        "lower method.guidance_scale",
    ),
)
WATCHED = tuple(dict.fromkeys(rule.metric for rule in RULES))


@dataclass(frozen=True)
class Verdict:
    """The result of the guard after a round.

    Attributes:
        findings: one message per value outside its limits; empty for a healthy run.
        act: whether the run must stop or roll back. True after `patience` unhealthy rounds in a row, and at once for a
            value that is NaN or infinite.
    """

    findings: tuple[str, ...] = ()
    act: bool = False


def not_finite(row: Row) -> tuple[str, ...]:
    """Return one message per metric that is NaN or infinite.

    Args:
        row: metrics of one round, by name.
    """
    return tuple(f"{name} is {value}" for name, value in row.items() if not math.isfinite(value))


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """Return the median of each watched metric in the last of several rounds, by name.

    A resumed run may log other metrics than before, for example without guidance. A metric that the last round does not
    have is left out, and the median is over the rounds that have it.

    Args:
        rows: metrics of several rounds; an empty sequence has no medians.
    """
    logged = [name for name in WATCHED if rows and name in rows[-1]]
    return {name: median(row[name] for row in rows if name in row) for name in logged}


def judge(recent: Row, baseline: Row, settings: GuardConfig) -> tuple[str, ...]:
    """Return one message per metric outside its limits. A relative limit needs the metric's baseline.

    Args:
        recent: medians of the last rounds, by metric.
        baseline: medians of the run's first rounds, by metric.
        settings: the limits.
    """
    findings = []
    for rule in RULES:
        if rule.metric not in recent or (rule.relative and rule.metric not in baseline):
            continue
        limit = getattr(settings, rule.limit) * (baseline[rule.metric] if rule.relative else 1.0)
        value = recent[rule.metric]
        if value < limit if rule.floor else value > limit:
            baseline_text = f" (baseline {baseline[rule.metric]:.3g})" if rule.relative else ""
            side = "below" if rule.floor else "above"
            findings.append(
                f"{rule.meaning}: {rule.metric} is {value:.3g}{baseline_text}, {side} the limit of {limit:.3g} "
                f"(guard.{rule.limit}); {rule.advice}"
            )
    return tuple(findings)


class Guard:
    """The rules applied to one run: the last rounds, the baseline, and the number of unhealthy rounds in a row."""

    def __init__(self, settings: GuardConfig) -> None:
        """Start without any round.

        Args:
            settings: the configuration's section `guard`.
        """
        self.settings = settings
        self._rounds = 0
        self._rows: list[dict[str, float]] = []
        self._baseline: dict[str, float] = {}
        self._wrong = 0
        self._energy = EnergyRule(settings)
        # True if the last round had a NaN or infinite value. No setting allows a run to continue from there.
        self.broken = False

    def observe_warmup(self, row: Row) -> Verdict:
        """Check the metrics of a round of the fake warm-up: only for NaN and infinite values.

        Args:
            row: metrics of the round, by name.
        """
        broken = not_finite(row)
        self.broken = bool(broken)
        return Verdict(broken, act=self.broken)

    def judge_energy(self, update: int, energy: float, standard_error: float) -> Verdict:
        """Check the energy score of a validation.

        Args:
            update: number of the generator update after which the samples were made.
            energy: the change of the energy score since the run's start, as a share of the start's score.
            standard_error: its standard error.
        """
        findings, act = self._energy.observe(update, energy, standard_error)
        return Verdict(findings, act)

    def observe(self, row: Row) -> Verdict:
        """Add the metrics of one round and check them.

        There are no findings before the baseline exists, after `warmup + window` rounds, except NaN or infinite values.

        Args:
            row: metrics of the round, by name.
        """
        broken = not_finite(row)
        self.broken = bool(broken)
        if broken:
            return Verdict(broken, act=True)
        settings = self.settings
        self._rounds += 1
        self._rows = [*self._rows, {name: row[name] for name in WATCHED if name in row}][-settings.window :]
        if self._rounds < settings.warmup + settings.window:
            return Verdict()
        if not self._baseline:
            self._baseline = medians(self._rows)
        findings = judge(medians(self._rows), self._baseline, settings)
        self._wrong = self._wrong + 1 if findings else 0
        return Verdict(findings, act=self._wrong >= settings.patience)

    @property
    def healthy(self) -> bool:
        """Whether the last round and the last validation had no finding; True while there is nothing to compare with.

        It is False after NaN or infinity.
        """
        return not self.broken and self._wrong == 0 and not self._energy.risen

    @property
    def trusted_until(self) -> int | None:
        """The last update with a good energy score of its samples, if the newest score is worse; else None.

        The weights went bad between this update and the newest validation. None means that all checkpoints count.
        """
        return self._energy.last_good if self._energy.risen else None

    def ratios(self) -> dict[str, float]:
        """Return the ratio of each watched metric to its baseline, by the metric's name in the log.

        It is empty before the baseline exists.
        """
        recent = medians(self._rows)
        return {
            f"guard/{name.rpartition('/')[2]}": recent[name] / value
            for name, value in self._baseline.items()
            if value and name in recent
        }

    def notes(self) -> dict[str, Any]:
        """Return the guard's state as JSON data, for a resumed run."""
        return {
            "rounds": self._rounds,
            "rows": self._rows,
            "baseline": self._baseline,
            "wrong": self._wrong,
            "energy": self._energy.notes(),
        }

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Restore the state that `notes` returned; runs of earlier versions have noted no energy scores."""
        self._rounds, self._wrong = notes["rounds"], notes["wrong"]
        self._energy.restore(notes.get("energy", {}))
        self._rows, self._baseline = list(notes["rows"]), dict(notes["baseline"])
        self.broken = False

"""The guard against collapse: what the curves of a healthy run never do, and what to say when they do it.

Distillation fails slowly and without an error: samples freeze, colours saturate, the fake score loses the generator,
the two scores drift apart. The guard compares the medians of the last rounds with those of the run's first ones,
because absolute values differ between models and resolutions. It is a pure rule on metrics, which the loop asks after
each round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..config.run import GuardConfig

Row = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """One quantity and what is wrong when it leaves its range.

    Attributes:
        metric: name of the quantity.
        limit: the field of `GuardConfig` that holds its limit.
        floor: whether the limit is the lowest allowed value, not the highest.
        relative: whether the limit is a multiple of the quantity's own baseline.
        meaning: what has happened.
        advice: what usually helps.
    """

    metric: str
    limit: str
    floor: bool
    relative: bool
    meaning: str
    advice: str


_STRENGTH = "lower generator_optimizer.lr or method.a_weak"
_CRITIC = "lower generator_optimizer.lr, or raise method.fake_updates or fake_optimizer.lr"

RULES = (
    Rule("generator/motion", "motion_floor", True, True, "the samples stop moving", _STRENGTH),
    Rule("generator/temporal_variance", "variance_floor", True, True, "the samples become stills", _STRENGTH),
    Rule("generator/deviation", "deviation_ceiling", False, True, "the samples saturate", _STRENGTH),
    Rule("generator/deviation", "deviation_floor", True, True, "the samples wash out to one colour", _STRENGTH),
    Rule("generator/saturation", "saturation_ceiling", False, False, "values leave the range of latents", _STRENGTH),
    Rule("generator/matching_gradient", "gradient_ceiling", False, True, "the matching gradient diverges", _CRITIC),
    Rule("generator/real_fake_distance", "distance_ceiling", False, True, "real and fake score drift apart", _CRITIC),
    Rule("fake/loss", "fake_loss_ceiling", False, True, "the fake score loses the generator", _CRITIC),
    Rule(
        "generator/guidance_ratio",
        "guidance_ceiling",
        False,
        False,
        "guidance drowns distribution matching",
        "lower method.guidance_scale",
    ),
)
WATCHED = tuple(dict.fromkeys(rule.metric for rule in RULES))


@dataclass(frozen=True)
class Verdict:
    """What the guard has to say after a round.

    Attributes:
        findings: everything that is out of its range, in words; empty for a healthy run.
        act: whether it has lasted long enough, or is bad enough, to stop or to go back.
    """

    findings: tuple[str, ...] = ()
    act: bool = False


def not_finite(row: Row) -> tuple[str, ...]:
    """The metrics of a round that are no number or infinite, in words."""
    return tuple(f"{name} is {value}" for name, value in row.items() if not math.isfinite(value))


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """The median of each watched quantity; those that the method does not have are absent."""
    return {name: median(row[name] for row in rows) for name in WATCHED if rows and name in rows[0]}


def judge(recent: Row, baseline: Row, settings: GuardConfig) -> tuple[str, ...]:
    """What is out of range, in words.

    Args:
        recent: medians of the last rounds.
        baseline: medians of the run's first rounds.
    """
    findings = []
    for rule in RULES:
        if rule.metric not in recent:
            continue
        limit = getattr(settings, rule.limit) * (baseline[rule.metric] if rule.relative else 1.0)
        value = recent[rule.metric]
        if value < limit if rule.floor else value > limit:
            began = f", began at {baseline[rule.metric]:.3g}" if rule.relative else ""
            side = "below" if rule.floor else "above"
            findings.append(
                f"{rule.meaning}: {rule.metric} is {value:.3g}{began}, {side} the limit of {limit:.3g} "
                f"(guard.{rule.limit}); {rule.advice}"
            )
    return tuple(findings)


class Guard:
    """The rule over a run: keeps the last rounds and the baseline, and counts how long something has been wrong."""

    def __init__(self, settings: GuardConfig) -> None:
        self.settings = settings
        self._rounds = 0
        self._rows: list[dict[str, float]] = []
        self._baseline: dict[str, float] = {}
        self._wrong = 0
        # Whether the last round had something that is no number: no setting lets a run go on from there.
        self.broken = False

    def observe(self, row: Row) -> Verdict:
        """Take in one round's metrics."""
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
        """Whether the last round was judged well, or not yet."""
        return self._wrong == 0

    def ratios(self) -> dict[str, float]:
        """How far each watched quantity is from its baseline, for the log (1 is where it began)."""
        recent = medians(self._rows)
        return {
            f"guard/{name.rpartition('/')[2]}": recent[name] / value
            for name, value in self._baseline.items()
            if value and name in recent
        }

    def notes(self) -> dict[str, Any]:
        """What a resumed run needs to judge alike, as JSON."""
        return {"rounds": self._rounds, "rows": self._rows, "baseline": self._baseline, "wrong": self._wrong}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Take up what `notes` gave."""
        self._rounds, self._wrong = notes["rounds"], notes["wrong"]
        self._rows, self._baseline = list(notes["rows"]), dict(notes["baseline"])
        self.broken = False

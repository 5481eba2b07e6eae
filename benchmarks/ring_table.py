"""The tables of the sweep on the ring: statistics of curves, with intervals over seeds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

# A rise of the distance from one measurement to the next counts if it is larger. A distance's noise is far smaller.
RISE = 0.02
# Training is called close to the data below this distance.
CLOSE = 0.05
NUMBERS: Mapping[str, str] = {
    "best": "best",
    "best_at": "best at update",
    "close_at": f"first below {CLOSE} at update",
    "end": "at the end",
    "oscillation": "oscillation",
    "rises": "rises",
}
HEAD = """# The sweep on the ring

Written by `python -m benchmarks.ring_sweep`. [Real/fake LoRA weights](../real-fake-weights.md) and
[Rivals](../rivals.md) state what it shows. Every run has {updates} generator updates and is measured every {every}. The
numbers are energy distances from the data (lower is better). They are means over {seeds} seeds with 95 % intervals
(t-distribution).

- *best*: the lowest distance of a run, and its update;
- *first below {close}*: the first such update; a run that never gets there counts with its length;
- *at the end*: the mean of the last five measurements;
- *oscillation*: the standard deviation of the second half of the curve;
- *rises*: how often the distance rose by more than {rise} from one measurement to the next.

A *control* is DMD with the generator's learning rate times `1 - a_weak`. Differences are paired by seed. They are
bold if their interval does not contain 0.

References: {references}.
"""


@dataclass(frozen=True)
class Curve:
    """Statistics of one run.

    Attributes:
        best: the lowest distance.
        best_at: the update with the lowest distance.
        close_at: the first update with a distance below `CLOSE`; the number of updates if there is none.
        end: mean of the last five distances.
        oscillation: standard deviation of the second half of the distances.
        rises: how often the distance rose by more than `RISE`.
    """

    best: float
    best_at: float
    close_at: float
    end: float
    oscillation: float
    rises: float

    @classmethod
    def of(cls, distances: Sequence[float], every: int) -> "Curve":
        """Compute the statistics.

        Args:
            distances: the distances from update 0 on, at least four.
            every: updates between two of them.
        """
        best, last = min(distances), (len(distances) - 1) * every
        close = (index * every for index, distance in enumerate(distances) if distance < CLOSE)
        return cls(
            best=best,
            best_at=distances.index(best) * every,
            close_at=next(close, last),
            end=fmean(distances[-5:]),
            oscillation=stdev(distances[len(distances) // 2 :]),
            rises=sum(b - a > RISE for a, b in pairwise(distances)),
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two values and the half width of its 95 % interval (t-distribution)."""
    width = student_t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return fmean(values), float(width)


def written(values: Sequence[float], digits: int, *, difference: bool = False) -> str:
    """Write a mean with its interval. A difference has its sign, and is bold if the interval does not contain 0."""
    mean, width = interval(values)
    text = f"{mean:{'+' if difference else ''}.{digits}f} ± {width:.{digits}f}"
    return f"**{text}**" if difference and abs(mean) > width else text


def rows_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


class Results:
    """The results of a sweep with their statistics.

    Args:
        results: the contents of a results file.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.plan, self.references, self.cells = results["plan"], results["references"], results["cells"]
        self.curves = {
            key: [Curve.of(curve, self.plan["every"]) for curve in entry["curves"]] for key, entry in self.cells.items()
        }

    def keys(self, part: str) -> list[str]:
        return [key for key in self.cells if key.startswith(f"{part}: ")]

    def values(self, key: str, number: str) -> list[float]:
        return [getattr(curve, number) for curve in self.curves[key]]

    def differences(self, key: str, other: str, number: str) -> list[float]:
        """Return the differences of a number between two cells, seed by seed."""
        return [a - b for a, b in zip(self.values(key, number), self.values(other, number), strict=True)]

    def summary(self, part: str) -> str:
        """Return the table of all cells of a part."""
        rows = [
            [
                key.removeprefix(f"{part}: "),
                *(written(self.values(key, number), digits(number)) for number in NUMBERS),
            ]
            for key in self.keys(part)
        ]
        return rows_table(["cell", *NUMBERS.values()], rows)

    def comparison(self, part: str, other: Callable[[str], str | None]) -> str:
        """Return the table of differences to another cell.

        Args:
            part: the part of the sweep.
            other: returns the key of the cell to compare with, or None to leave a cell out.
        """
        rows = [
            [
                key.removeprefix(f"{part}: "),
                *(written(self.differences(key, base, number), digits(number), difference=True) for number in NUMBERS),
            ]
            for key in self.keys(part)
            if (base := other(key)) is not None
        ]
        return rows_table(["cell", *NUMBERS.values()], rows)

    def alignment(self, part: str) -> str:
        """Return the table of cosines and lengths of the scores' differences in a part's cells with a weak weight."""
        rows = []
        for key in self.keys(part):
            if weight := re.search(r"w2s ([\d.]+)$", key):
                for update, found in self.cells[key]["alignment"].items():
                    cosines, ratios = zip(*found[weight[1]], strict=True)
                    rows.append([key.removeprefix(f"{part}: "), update, written(cosines, 3), written(ratios, 3)])
        return rows_table(["cell", "update", "cosine", "ratio of lengths"], rows)


def digits(number: str) -> int:
    """Return how many decimals of a statistic the tables have."""
    return {"best_at": 0, "close_at": 0, "rises": 1}.get(number, 4)


def control(key: str) -> str | None:
    """Return the key of the control of a cell with a weak weight; None for other cells."""
    return key.replace("w2s", "control") if "w2s" in key else None


def plain(key: str) -> str | None:
    """Return the key of DMD with the settings of a cell with a weak weight; None for other cells."""
    return re.sub(r"w2s [\d.]+$", "dmd", key) if "w2s" in key else None


def table(results: Mapping[str, Any]) -> str:
    """Return the page of tables for the results of a complete sweep."""
    found = Results(results)
    references = ", ".join(f"{name} {distance:.4f}" for name, distance in found.references.items())
    plan = {name: found.plan[name] for name in ("seeds", "updates", "every")}
    page = HEAD.format(rise=RISE, close=CLOSE, references=references, **plan)
    titles = {"grid": "Weak weight, fake rate and epsilon", "collapse": "Slow fake scores and tiny batches"}
    for part, title in titles.items():
        page += f"\n## {title}\n\n{found.summary(part)}\nWeak weight minus control:\n\n"
        page += f"{found.comparison(part, control)}\nWeak weight minus DMD with the same learning rate:\n\n"
        page += found.comparison(part, plain)
        page += "\nThe scores' difference `v_a - v_1` compared with DMD's `v_0 - v_1`, in the same run:\n\n"
        page += found.alignment(part)
    page += f"\n## Rivals\n\n{found.summary('rivals')}"
    for base in ("rivals: dmd", "rivals: w2s", "rivals: w2s, supervised"):
        page += f"\nMinus *{base.removeprefix('rivals: ')}*:\n\n"
        page += found.comparison("rivals", {key: base for key in found.keys("rivals") if key != base}.get)
    return page

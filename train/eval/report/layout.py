"""Which figure stands in which table, and how figures are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..measures.base import Column, Measure

# The order of Table 1 of the MagicDistillation paper and of Table 1 of Magic 1-For-1.
VBENCH_ORDER = (
    "i2v_subject",
    "subject_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "temporal_flickering",
)
AVERAGE = Column("average", "average", "higher", 4)
NOT_RUN = "not run"


@dataclass(frozen=True)
class Table:
    """A table of folders against figures.

    Attributes:
        title: its heading.
        note: a sentence below the heading.
        columns: its columns.
        of_reference: whether the reference has these figures too. It has no distance to itself.
    """

    title: str
    note: str
    columns: tuple[Column, ...]
    of_reference: bool = True

    def rows(self, systems: Mapping[str, Any]) -> dict[str, Any]:
        """Return the folders that have a row.

        Args:
            systems: the folders' part of the result.
        """
        return {name: system for name, system in systems.items() if self.of_reference or not system["reference"]}


def tables(measures: Sequence[Measure]) -> list[Table]:
    """Return the tables of measures, whether they ran or not.

    Args:
        measures: all measures that a user wants.
    """
    columns = {column.name: column for measure in measures for column in measure.columns}
    vbench = [columns[name] for name in VBENCH_ORDER if name in columns]
    sets = tuple(measure.distance.column for measure in measures if measure.distance is not None)

    def group(name: str) -> tuple[Column, ...]:
        return tuple(
            column
            for measure in measures
            if measure.group == name
            for column in measure.columns
            if column.name not in VBENCH_ORDER
        )

    return [
        Table(
            "VBench-I2V",
            "The seven dimensions in the papers' order. The average needs all seven.",
            (*vbench, *([AVERAGE] if len(vbench) == len(VBENCH_ORDER) else [])),
        ),
        Table("Distances to the reference", "Between all videos of a folder and all of the reference.", sets, False),
        Table(
            "Pictures and defects", "From pixels, LPIPS and RIFE. None of these numbers is VBench's.", group("picture")
        ),
        Table("Against the reference video of the same name", "Frame by frame.", group("reference"), False),
        Table(
            "Face",
            "From MediaPipe's landmarks and dlib's descriptors. Only where there is an arrow, high or low is good by "
            "itself: compare the others with the reference.",
            group("face"),
        ),
    ]


def shown_columns(table: Table, systems: Mapping[str, Any]) -> tuple[Sequence[Column], list[str]]:
    """Return the columns of a table that are shown, and the titles of those that are not because they did not run.

    The papers' table keeps all its columns.

    Args:
        table: the table.
        systems: the folders' part of the result.
    """
    if AVERAGE in table.columns:
        return table.columns, []
    ran = [column for column in table.columns if any(cell(system, column) != NOT_RUN for system in systems.values())]
    return ran, [column.title for column in table.columns if column not in ran]


def average(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the average of VBench's seven dimensions; None unless all are there.

    Args:
        figures: the figures of a folder.
    """
    found = [figures.get(name) for name in VBENCH_ORDER]
    means = [one["mean"] for one in found if one is not None]
    return {"mean": sum(means) / len(means), "low": None, "high": None} if len(means) == len(VBENCH_ORDER) else None


def cell(system: Mapping[str, Any], column: Column) -> str:
    """Return the text of a figure: `mean [low, high]`, a distance with its floor, or why there is none.

    Args:
        system: a folder's part of the result.
        column: the figure.
    """
    if column.name in system["distances"]:
        distance = system["distances"][column.name]
        if distance is None:
            return "too few"
        floor = "" if distance["floor"] is None else f" (floor {number(distance['floor'], column.digits)})"
        return f"{number(distance['value'], column.digits)}{floor}"
    if column.name == AVERAGE.name:
        found = average(system["figures"])
    elif column.name in system["figures"]:
        found = system["figures"][column.name]
        if found is None:
            return "—"
    else:
        return NOT_RUN
    if found is None:
        return NOT_RUN
    text = number(found["mean"], column.digits)
    if found["low"] is not None:
        text += f" [{number(found['low'], column.digits)}, {number(found['high'], column.digits)}]"
    return text


def number(value: float | None, digits: int) -> str:
    """Return a number with some digits after the point; a dash for none."""
    return "—" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def facts_line(facts: Mapping[str, Any]) -> str:
    """Return N, length, frame rate, size and encoding of a folder on one line."""

    def most(kind: str) -> str:
        counted = facts[kind]
        if not counted:
            return "unknown"
        first = next(iter(counted))
        return first if len(counted) == 1 else f"{first} and {len(counted) - 1} others"

    return (
        f"{facts['scored']} of {facts['videos']} videos, {facts['starts']} start images, {most('frames')} frames, "
        f"{most('fps')} fps, {most('size')}, {most('encoding')}"
    )

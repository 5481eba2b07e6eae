"""The generated part of docs/fidelity.md: the results of the cells next to the numbers of the paper.

All numbers come from the JSON file of the results and from `papers`. Without results the page shows only the paper's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text
from magicdistill_core.metrics.bootstrap import Interval

from ..measuring.intervals import crossed_bootstrap
from .claims import CLAIMS, verdict
from .design import Design, Row, Table
from .papers import PAPER, PaperRow

# How the names of the contact sheets in docs/images begin.
_PICTURE = "fidelity_"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
FLOOR = Row("floor", "Other renders of the same beginnings", ())
# The rows from which differences are shown.
_BASELINES = ("euler-28", "euler-4")


@dataclass(frozen=True)
class Results:
    """The results of the cells.

    Attributes:
        cells: the records by cell, as `records.write_results` wrote them.
    """

    cells: dict[str, dict[str, Any]]

    def records(self, row: Row) -> list[dict[str, Any]]:
        """Return the records of a row, one per training seed that has been measured."""
        names = [cell.name for cell in row.cells] or [row.name]
        return [self.cells[name] for name in names if name in self.cells]

    def values(self, row: Row, measure: str) -> Tensor | None:
        """Return a measure of a row, `[seeds, clips]`; None if nothing has been measured."""
        measured = [record["measures"][measure] for record in self.records(row) if "measures" in record]
        return torch.tensor(measured, dtype=torch.float64) if measured else None

    def difference(self, row: Row, other: Row, measure: str) -> Interval | None:
        """Return the mean difference of two rows on the same clips; None if one of them has not been measured.

        A row with one model, such as the teacher, is subtracted from every seed of the other. Of two rows with several
        seeds, equal seeds are subtracted.
        """
        mine, its = self.values(row, measure), self.values(other, measure)
        if mine is None or its is None:
            return None
        if 1 not in (len(mine), len(its)):
            shared = min(len(mine), len(its))
            mine, its = mine[:shared], its[:shared]
        return _interval(mine - its)


def generated_part(results: dict[str, Any] | None, sheets: Sequence[str] = ()) -> str:
    """Return the generated part of the page in Markdown.

    Args:
        results: what `records.read_results` returned; None if nothing has been measured yet.
        sheets: the pictures of contact sheets in `docs/images`, in the order of the page.
    """
    tables: dict[str, Table] = {table.name: table for table in Design().tables}
    if results is None:
        return "\n\n".join(_paper_table(tables[name]) for name in ("main", "one_step"))
    found = Results(results["cells"])
    parts = [_facts(results)]
    for name in ("main", "one_step"):
        parts += _full(found, tables[name], tables["main"])
    for name in ("ablation", "collapse", "sweep"):
        parts += _short(found, tables[name], tables["main"])
    parts += _claims(found, tables)
    if sheets:
        parts.append("## Contact sheets\n\nThe first 16 held-out start images of each row, and its first noise seed.")
        parts += [f"![{Path(sheet).stem.removeprefix(_PICTURE)}](images/{sheet})" for sheet in sheets]
    return "\n\n".join(parts)


def write_page(page: Path, results: dict[str, Any] | None, sheets: Sequence[str] = ()) -> None:
    """Write the generated part into the page between its two marks.

    Args:
        page: the Markdown file.
        results: as for `generated_part`.
        sheets: as for `generated_part`.

    Raises:
        ConfigError: if the page does not have the two marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{page} has no part between {BEGIN!r} and {END!r}. Restore these two lines.")
    write_text(page, f"{before}{BEGIN}\n\n{generated_part(results, sheets)}\n\n{END}{after}")


def _interval(values: Tensor) -> Interval:
    # All intervals resample the same runs and clips.
    return crossed_bootstrap(values, torch.Generator().manual_seed(0))


def _facts(results: dict[str, Any]) -> str:
    machines = sorted({record["machine"] for record in results["cells"].values()})
    hours = sum(_hours(results["cells"]).values())
    return (
        f"Measured on {results['clips']} held-out start images with {results['seeds']} noise seeds each. Budget of a "
        f"training: {results['calls']} network calls. All trainings read the same {results['portraits']} portraits. "
        f"The trainings took {hours:.1f} hours in all. Machines: {'; '.join(machines)}. Numbers in parentheses are "
        f"95 % intervals. Bold differences have an interval without 0."
    )


def _hours(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the hours of each training; the last stage of a training has its complete time."""
    hours: dict[str, float] = {}
    for table in Design().tables:
        for cell in (cell for row in table.rows for cell in row.cells if cell.name in cells):
            if cell.training is not None:
                hours[cell.training.name] = max(hours.get(cell.training.name, 0.0), cells[cell.name]["seconds"] / 3600)
    return hours


def _full(found: Results, table: Table, main: Table) -> list[str]:
    """Return the three tables of the main rows, with the paper's numbers next to the first measure."""
    baselines = [row for row in main.rows if row.name in _BASELINES]
    rows = [FLOOR, *(row for row in baselines if row not in table.rows), *table.rows]
    rows = [row for row in rows if found.values(row, "intact") is not None]
    minus = [f"minus {row.label[0].lower()}{row.label[1:]}" for row in baselines]
    quality = [
        [
            row.label,
            _best(found, row),
            _cell(found, row, "energy_pixels"),
            *(_difference(found, row, other, "energy_pixels") for other in baselines),
            *_paper(row),
        ]
        for row in rows
    ]
    latents = [
        [
            row.label,
            _cell(found, row, "energy_latents"),
            *(_difference(found, row, other, "energy_latents") for other in baselines),
        ]
        for row in rows
    ]
    faces = [
        [
            row.label,
            _cell(found, row, "intact", percent=True),
            *(_difference(found, row, other, "intact", percent=True) for other in baselines),
            _cell(found, row, "identity", percent=True),
            _averaged(found, row, "motion_distance"),
            _averaged(found, row, "two_sample", percent=True),
        ]
        for row in rows
    ]
    return [
        f"## {table.title}",
        "Energy score of decoded pixels, lower is better, next to the paper's VBench (higher is better) and FVD.",
        _markdown(["", "update", "energy score", *minus, "paper: VBench", "paper: FVD"], quality),
        "Energy score of latents, lower is better.",
        _markdown(["", "energy score", *minus], latents),
        "Faces, motion and the two-sample test.",
        _markdown(["", "intact faces", *minus, "identity kept", "motion distance", "told from data"], faces),
    ]


def _short(found: Results, table: Table, main: Table) -> list[str]:
    """Return the table of rows with one seed each."""
    teacher = next(row for row in main.rows if row.name == "euler-4")
    rows = []
    for row in table.rows:
        for record in found.records(row)[:1]:
            # A row of another table may have more seeds. This table shows the first one.
            one = Row(row.name, row.label, row.cells[:1])
            rows.append(
                [
                    row.label,
                    _best(found, one),
                    _difference(found, one, teacher, "energy_pixels"),
                    _cell(found, one, "intact", percent=True),
                    _cell(found, one, "identity", percent=True),
                    _averaged(found, one, "two_sample", percent=True),
                    _guard(record),
                ]
            )
    if not rows:
        return []
    head = ["", "update", "energy score minus teacher, 4 steps", "intact faces", "identity kept", "told from data"]
    return [f"## {table.title}", _markdown([*head, "first finding of the guard"], rows)]


def _claims(found: Results, tables: dict[str, Table]) -> list[str]:
    rows = {row.name: row for name in ("main", "one_step") for row in tables[name].rows}
    lines = []
    for claim in CLAIMS:
        for measure, higher in (("energy_pixels", False), ("intact", True)):
            difference = found.difference(rows[claim.better], rows[claim.worse], measure)
            if difference is not None:
                shown = _show(difference, percent=measure == "intact", sign=True)
                name = "energy score, pixels" if measure == "energy_pixels" else "intact faces"
                lines.append([claim.text, claim.source, name, shown, verdict(claim, difference, higher=higher)])
    return ["## Where the order holds", _markdown(["claim", "of", "measure", "difference", ""], lines)] if lines else []


def _cell(found: Results, row: Row, measure: str, *, percent: bool = False) -> str:
    values = found.values(row, measure)
    return "" if values is None else _show(_interval(values), percent=percent)


def _difference(found: Results, row: Row, other: Row, measure: str, *, percent: bool = False) -> str:
    difference = None if row.name == other.name else found.difference(row, other, measure)
    if difference is None:
        return ""
    shown = _show(difference, percent=percent, sign=True)
    return shown if difference.low <= 0 <= difference.high else f"**{shown}**"


def _show(interval: Interval, *, percent: bool, sign: bool = False) -> str:
    def number(value: float) -> str:
        text = f"{100 * value:.1f} %" if percent else f"{value:.4f}"
        return f"+{text}" if sign and value > 0 else text

    return f"{number(interval.mean)} ({number(interval.low)} to {number(interval.high)})"


def _averaged(found: Results, row: Row, measure: str, *, percent: bool = False) -> str:
    """Return a measure with one interval per seed: the means over seeds of its value and of the interval's ends."""
    values = found.values(row, measure)
    return "" if values is None else _show(Interval(*values.mean(0).tolist()), percent=percent)


def _best(found: Results, row: Row) -> str:
    """Return the update of the model and the length of its run, for each seed."""
    runs = [record for record in found.records(row) if "updates" in record]
    updates = ", ".join(str(record["update"]) for record in runs)
    return f"{updates} of {runs[0]['updates']}" if runs else ""


def _guard(record: dict[str, Any]) -> str:
    if record.get("ended_at") is not None and "measures" not in record:
        return f"ended at update {record['ended_at']}: values that are not finite"
    if record.get("finding") is None:
        return ""
    update, text = record["finding"]
    return f"update {update}: {text}"


def _paper(row: Row) -> list[str]:
    numbers = PAPER.get(row.name, PaperRow())
    vbench = "" if numbers.vbench is None else f"{numbers.vbench:.4f}"
    return [vbench, ", ".join(f"{value:.2f}" for value in numbers.fvd)]


def _paper_table(table: Table) -> str:
    rows = [[row.label, *_paper(row)] for row in table.rows if row.name in PAPER]
    return f"### {table.title}: the paper's numbers\n\n" + _markdown(["", "VBench", "FVD"], rows)


def _markdown(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def copy_sheets(folder: Path, cells: Sequence[str], page: Path) -> None:
    """Copy contact sheets to the pictures of the page.

    Args:
        folder: the folder of the contact sheets.
        cells: names of cells.
        page: the page; its pictures are in the folder `images` next to it.

    Raises:
        ConfigError: if a cell has no contact sheet.
    """
    for cell in cells:
        sheet = folder / f"{cell}.jpg"
        if not sheet.is_file():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.jpg"))) or "none"
            raise ConfigError(f"{folder} has no contact sheet of {cell}. There are: {known}.")
        target = page.parent / "images" / f"{_PICTURE}{cell}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sheet.read_bytes())


def sheets_of(page: Path) -> list[str]:
    """Return the file names of the contact sheets that were copied to a page, in their order."""
    return sorted(path.name for path in (page.parent / "images").glob(f"{_PICTURE}*.jpg"))

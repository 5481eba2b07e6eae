"""Several runs of one machine as one document: every benchmark's rows from the newest run that has them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .claims import Document, Row

Entry = dict[str, Any]
DONE = "done"
NOT_RUN = "not run: "


@dataclass(frozen=True)
class Source:
    """A run that rows are of: its machine, and its benchmarks with such rows."""

    machine: Mapping[str, Any]
    benchmarks: tuple[str, ...]


def covers(case: str, measured: str) -> bool:
    """Whether a case, which failed, is the one that gives a row: the row itself, or the group it stands in."""
    return measured == case or measured.startswith(f"{case}: ")


def closest_failure(failed: Iterable[Row], case: str) -> Row | None:
    """Of the cases that failed the one that names a row most closely."""
    return max((row for row in failed if covers(row["case"], case)), key=lambda row: len(row["case"]), default=None)


def label(machine: Mapping[str, Any]) -> str:
    """When, and at which commit."""
    return f"{machine.get('date', 'unknown date')}, commit {machine.get('commit') or 'unknown'}"


def merged(runs: Mapping[str, Document]) -> Document:
    """Runs of one machine and size as one.

    Of every benchmark the rows are those of the newest run that has any. A row of an older run stays where a newer one
    failed at its case, had no time for it or ended before it; it then says for which case it stands (`stands_for`) and
    what became of that (`because`), and whose it is (`of_run`) unless all rows are of that run. Errors stay where no
    run has the rows.

    Args:
        runs: documents by name.

    Returns:
        A document like that of one run, with its `sources` by name, the newest first, and the newest's machine. Every
        benchmark's entry says when and at which commit it was `measured`.
    """
    ordered = sorted(runs, key=lambda name: (runs[name]["machine"].get("date", ""), name))
    held: dict[str, Entry] = {}
    for name in ordered:
        for benchmark, entry in runs[name]["benchmarks"].items():
            tagged = {"status": entry["status"], "run": name, "rows": [row | {"run": name} for row in entry["rows"]]}
            held[benchmark] = _over(held[benchmark], tagged) if benchmark in held else tagged
    sources: dict[str, Source] = {}
    for name in reversed(ordered):
        given = tuple(benchmark for benchmark, entry in held.items() if any(row["run"] == name for row in _good(entry)))
        if given:
            sources[name] = Source(runs[name]["machine"], given)
    newest = next(iter(sources), ordered[-1])
    return {
        "machine": runs[newest]["machine"],
        "benchmarks": {benchmark: _finished(entry, runs) for benchmark, entry in held.items()},
        "sources": sources,
    }


def _over(older: Entry, newer: Entry) -> Entry:
    """A newer run's entry, with what it does not replace of the older ones."""
    measured, failed = _good(newer), _failed(newer)
    cases = {row["case"] for row in measured}
    profiled = {_group(row) for row in measured if "part" in row}
    # One that measured nothing replaces nothing, however it ended.
    complete = newer["status"] == DONE and bool(measured)
    ended = (
        newer["status"] if newer["status"] != DONE else "; ".join(f"{row['case']}: {row['error']}" for row in failed)
    )
    kept: list[Row] = []
    replaced: set[str] = set()
    for row in _good(older):
        # The kernels of two profiles are not to be added up.
        if row["case"] in cases or ("part" in row and _group(row) in profiled):
            continue
        error = closest_failure(failed, row["case"])
        if error is not None:
            kept.append(row | {"stands_for": error["case"], "because": error["error"]})
            replaced.add(error["case"])
        elif not complete:
            kept.append({"stands_for": _group(row) if measured else "all", "because": ended} | row)
    failed = [row for row in failed if row["case"] not in replaced]
    if not complete:
        new = cases - {row["case"] for row in _good(older)}
        known = {row["case"] for row in _failed(newer)}
        failed += [
            row
            for row in _failed(older)
            if row["case"] not in known and not any(covers(row["case"], case) for case in new)
        ]
    goes_on = complete or (newer["rows"] and DONE not in (older["status"], newer["status"]))
    return {
        "status": (newer if goes_on else older)["status"],
        "run": (newer if measured else older)["run"],
        "rows": [*measured, *kept, *failed],
    }


def _finished(entry: Entry, runs: Mapping[str, Document]) -> Entry:
    """An entry as a document has it, with rows of another run named as such."""
    rows: list[Row] = []
    for row in entry["rows"]:
        shown = {key: value for key, value in row.items() if key != "run"}
        if row["run"] != entry["run"] and "error" not in row:
            shown["of_run"] = label(runs[row["run"]]["machine"])
        rows.append(shown)
    return {"status": entry["status"], "measured": label(runs[entry["run"]]["machine"]), "rows": rows}


def _good(entry: Entry) -> list[Row]:
    return [row for row in entry["rows"] if "error" not in row]


def _failed(entry: Entry) -> list[Row]:
    return [row for row in entry["rows"] if "error" in row]


def _group(row: Row) -> str:
    return str(row["case"].partition(": ")[0])

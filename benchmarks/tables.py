"""A benchmark's rows as Markdown: a table for every group of cases, and what was not measured."""

from collections.abc import Iterator
from typing import Any

from .claims import Row, of_run
from .kernels import by_kind

_HEADINGS = {
    "case": "what",
    "of_matmul": "of a plain product",
    "seconds": "median s",
    "peak_gb": "device peak GB",
    "host_peak_gb": "host peak GB",
    "host_peak_with_mapped_gb": "with mapped files GB",
    "tflop": "TFLOP",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "file_gb": "file GB",
    "weights_gb": "weights GB",
    "file_system": "file system",
}
_PERCENT = {"spread", "part", "of_matmul"}
_LAST = (
    "rollout_seconds",
    "scores_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "communication_seconds",
    "bare_seconds",
    "ratio",
    "relative_difference",
)
# The JSON has them; the spread and the names of the cases say enough here. Notes and errors stand outside of tables.
_HIDDEN = {"seconds_min", "seconds_max", "frames", "steps", "note", "error", "of_run", "stands_for", "because"}


def tables(rows: list[Row]) -> Iterator[str]:
    """Lines of Markdown: cases without a group first, then a table for every group "group: variant".

    Rows of an older run have tables of their own, since only what ran together is to be compared.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "error" not in row and len(row) > 1:
            group, _, variant = row["case"].partition(": ")
            groups.setdefault((group if variant else "", of_run(row)), []).append(row)
    for number, ((group, run), members) in enumerate(sorted(groups.items(), key=lambda item: item[0][0] != "")):
        if number:
            yield ""
        yield from _group(group, run, members)


def _group(group: str, run: str, rows: list[Row]) -> Iterator[str]:
    if "part" in rows[0]:
        rows = by_kind(rows)
    counts = {row.get("tokens") for row in rows}
    common = group != "" and len(counts) == 1 and None not in counts
    heading = f"**{group}**{f' ({counts.pop()} tokens)' if common else ''}" if group else ""
    if heading or run:
        yield ", ".join(part for part in (heading, run and f"measured {run}") if part)
        yield ""
    shown = [
        {key: value for key, value in row.items() if not (common and key == "tokens")}
        | {"case": row["case"].removeprefix(f"{group}: ")}
        for row in rows
    ]
    yield from table(shown)
    notes: dict[str, list[str]] = {}
    for row in shown:
        if "note" in row:
            notes.setdefault(row["note"], []).append(row["case"])
    if notes:
        yield ""
        for note, cases in notes.items():
            yield f"- {note}" if len(cases) == len(shown) else f"- {', '.join(cases)}: {note}"


def table(rows: list[Row]) -> list[str]:
    """Rows as one Markdown table with the columns that any of them has, in the order of their first appearance.

    Phases, and what is computed from them, come last.
    """
    rows = [_in_small_units(row) for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in _HIDDEN))
    columns.sort(key=lambda column: _LAST.index(column) if column in _LAST else -1)
    lines = [_line(_HEADINGS.get(column, column.replace("_seconds", " s").replace("_", " ")) for column in columns)]
    lines.append(_line("---" if column == "case" else "---:" for column in columns))
    return lines + [_line(_cell(column, row) for column in columns) for row in rows]


def missing(benchmarks: dict[str, Any]) -> Iterator[str]:
    """Every reason for which something was not measured, and the cases that it kept from it."""
    reasons: dict[str, list[str]] = {}
    for name, entry in benchmarks.items():
        for row in entry["rows"]:
            if "error" in row:
                reasons.setdefault(row["error"].removeprefix("not run: "), []).append(f"{row['case']} ({name})")
    for reason, cases in reasons.items():
        yield f"{'; '.join(cases)}: {reason}"


def older(benchmarks: dict[str, Any]) -> Iterator[str]:
    """Where rows of an older run are shown, and what became of them in a newer one."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, entry in benchmarks.items():
        for row in entry["rows"]:
            if "stands_for" in row:
                cases = reasons.setdefault((row.get("of_run") or entry["measured"], row["because"]), [])
                case = f"{row['stands_for']} ({name})"
                if case not in cases:
                    cases.append(case)
    for (run, because), cases in reasons.items():
        yield f"{'; '.join(cases)}, measured {run}; in a newer run: {because.removeprefix('not run: ')}"


def number(value: float) -> str:
    """A number with four digits, or as a power of ten when it is tiny."""
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _in_small_units(row: Row) -> Row:
    """PFLOP as TFLOP, so that a pocket network's is no power of ten."""
    return {"tflop" if key == "pflop" else key: 1e3 * value if key == "pflop" else value for key, value in row.items()}


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: str, row: Row) -> str:
    value = row.get(column)
    # One repeat has no spread.
    if value is None or (column == "spread" and row.get("repeats") == 1):
        return ""
    if isinstance(value, float) and column in _PERCENT:
        return f"{100 * value:.1f} %"
    return number(value) if isinstance(value, (int, float)) else str(value).replace("|", "\\|")

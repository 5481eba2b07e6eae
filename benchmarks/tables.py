"""Write a benchmark's rows as Markdown tables, one table per group of cases."""

from collections.abc import Iterator

from .harness import Row
from .kernels import by_kind
from .runs import group

_HEADINGS = {
    "case": "what",
    "part": "share",
    "of_matmul": "of a plain product",
    "seconds": "median s",
    "peak_gb": "device peak GB",
    "usual_peak_gb": "peak GB of the usual call",
    "host_peak_gb": "host peak GB",
    "host_peak_with_mapped_gb": "with mapped files GB",
    "tflop": "TFLOP",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "file_gb": "file GB",
    "weights_gb": "weights GB",
    "file_system": "file system",
    "communication_share": "communication",
    "sent_gb": "sent GB",
}
_PERCENT = {"spread", "part", "of_matmul", "communication_share"}
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
# These columns are only in the JSON: `spread` and the case's name already contain them. Notes follow below the table.
_HIDDEN = {"seconds_min", "seconds_max", "frames", "steps", "note"}


def tables(rows: list[Row]) -> list[str]:
    """Return lines of Markdown: a table of the cases without a group, then one table per group ("group: variant")."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = group(row)
        groups.setdefault("" if name == row["case"] else name, []).append(row)
    parts = [_group(name, members) for name, members in sorted(groups.items(), key=lambda item: item[0] != "")]
    return [line for number, part in enumerate(parts) for line in ([""] if number else []) + part]


def _group(name: str, rows: list[Row]) -> list[str]:
    if "part" in rows[0]:
        rows = by_kind(rows)
    counts = {row.get("tokens") for row in rows}
    common = name != "" and len(counts) == 1 and None not in counts
    lines = [f"**{name}**{f' ({counts.pop()} tokens)' if common else ''}", ""] if name else []
    hidden = {"tokens"} if common else set()
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    lines += table([row | {"case": row["case"].removeprefix(f"{name}: ")} for row in shown])
    notes = dict.fromkeys(f"- {row['case'].removeprefix(f'{name}: ')}: {row['note']}" for row in rows if "note" in row)
    return [*lines, "", *notes] if notes else lines


def table(rows: list[Row]) -> list[str]:
    """Return the lines of one Markdown table.

    The table has every column that any row has, in the order of first appearance. The columns in `_LAST` come last:
    the phases of an update, and ratios.
    """
    rows = [_in_small_units(row) for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in _HIDDEN))
    columns.sort(key=lambda column: _LAST.index(column) if column in _LAST else -1)
    lines = [_line(_HEADINGS.get(column, column.replace("_seconds", " s").replace("_", " ")) for column in columns)]
    lines.append(_line("---" if column == "case" else "---:" for column in columns))
    return lines + [_line(_cell(column, row) for column in columns) for row in rows]


def number(value: float) -> str:
    """Format a number with four significant digits; below 0.001 as a power of ten."""
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _in_small_units(row: Row) -> Row:
    """Convert PFLOP to TFLOP, because the PFLOP of a pocket network are tiny."""
    return {"tflop" if key == "pflop" else key: 1e3 * value if key == "pflop" else value for key, value in row.items()}


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: str, row: Row) -> str:
    value = row.get(column)
    # One repeat has no spread.
    if value is None or (column == "spread" and row.get("repeats") == 1):
        return ""
    if isinstance(value, float) and column in _PERCENT:
        return f"{value:.1%}"
    return number(value) if isinstance(value, (int, float)) else str(value).replace("|", "\\|")

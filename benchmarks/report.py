"""Results as Markdown: what a run's rows say, and a table for every benchmark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .claims import Document, Row, claims
from .store import Store

_TITLES = {
    "forward": "One forward of the transformer",
    "iteration": "One iteration of training",
    "sampling": "Sampling",
    "loading": "Writing and loading a checkpoint",
    "autoencoder": "Encoding and decoding",
    "data": "The latent dataset",
}
_HEADINGS = {
    "case": "what",
    "of_matmul": "of a plain product",
    "seconds": "median s",
    "peak_gb": "device peak GB",
    "host_peak_gb": "host peak GB",
    "host_peak_with_mapped_gb": "with mapped files GB",
    "pflop": "PFLOP",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "file_gb": "file GB",
    "weights_gb": "weights GB",
    "error": "not measured because",
}
_PERCENT = {"spread", "part", "of_matmul"}
_TEXTS = ("note", "error")
# The files have them; the spread says enough here.
_HIDDEN = {"seconds_min", "seconds_max"}
_INTRODUCTION = """# Performance

Written by `python -m benchmarks report` from the files in `benchmarks/results/`; `python -m benchmarks` makes such a
file on any machine. Compared variants ran interleaved, in one process, after a warm-up. Times are medians; the spread
is the range of the repeats as a part of the median. All weights and inputs are random numbers.
"""


def performance_page(folder: Path) -> str:
    """The page of all results of a folder, newest first."""
    documents = [Store(path).read() for path in sorted(folder.glob("*.json"))]
    documents.sort(key=lambda document: document["machine"].get("date", ""), reverse=True)
    return "\n".join([_INTRODUCTION, *(render(document) for document in documents)])


def render(document: Document) -> str:
    """One run as Markdown: the machine, what its rows say, the rows."""
    machine = document["machine"]
    lines = [f"## {machine.get('device', 'Unknown device')}, {machine.get('sizes', '')} sizes", ""]
    lines += [f"- {line}" for line in machine_lines(machine)]
    if machine.get("sizes") == "pocket":
        lines.append("- Pocket sizes: they show that everything runs and guard ratios; they say nothing of 13B's speed")
    lines += ["", "What the rows below say:", "", *(f"- {line}" for line in claims(document))]
    for name, benchmark in document["benchmarks"].items():
        lines += ["", f"### {_TITLES.get(name, name)}", ""]
        if benchmark["status"] != "done":
            lines += [f"This benchmark is incomplete ({benchmark['status']}).", ""]
        lines += tables(benchmark["rows"])
    return "\n".join(lines) + "\n"


def machine_lines(machine: dict[str, Any]) -> Iterator[str]:
    """What the measurements ran on, as short statements."""
    if "date" in machine:
        yield f"{machine['date']}, commit {machine.get('commit') or 'unknown'}"
        memory = f", device memory {machine['device_memory_gb']} GB" if "device_memory_gb" in machine else ""
        yield f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB{memory}; {machine['system']}"
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        cuda = f", CUDA {machine['cuda']}, cuDNN {machine['cudnn']}" if "cuda" in machine else ""
        yield f"Python {machine['python']}, {versions}{cuda}"
    if "matmul_tflops" in machine:
        yield (
            f"It reaches {_number(machine['matmul_tflops'])} TFLOP/s at a plain matrix product of random numbers and "
            f"{_number(machine['copy_gb_per_s'])} GB/s at a plain copy"
        )


def tables(rows: list[Row]) -> Iterator[str]:
    """Rows as Markdown tables, of which a new one begins where a row has columns that the one before it lacks."""
    if not rows:
        yield "No case was measured."
    part: list[Row] = []
    columns: set[str] = set()
    for row in rows:
        new = row.keys() - _HIDDEN - {"case", "error"}
        if columns and new - columns:
            yield from (*table(part), "")
            part, columns = [], set()
        part.append(row)
        columns |= new
    if part:
        yield from table(part)


def table(rows: list[Row]) -> list[str]:
    """Rows as one Markdown table with the columns that any of them has, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in _HIDDEN))
    # Texts are few and long: last.
    columns.sort(key=lambda column: column in _TEXTS)
    lines = [_line(_HEADINGS.get(column, column.replace("_", " ")) for column in columns)]
    lines.append(_line("---" if column in ("case", *_TEXTS) else "---:" for column in columns))
    return lines + [_line(_cell(column, row.get(column)) for column in columns) for row in rows]


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and column in _PERCENT:
        return f"{100 * value:.1f} %"
    return _number(value) if isinstance(value, (int, float)) else str(value).replace("|", "\\|")


def _number(value: float) -> str:
    """A number with four digits, or as a power of ten when it is tiny."""
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""Select rows from several runs of one machine: the newest measurements, and what has not been measured.

A run is one call of `python -m benchmarks`. Its document is the content of its JSON file (`benchmarks.store`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from .harness import Row

Document = dict[str, Any]
_NOT_RUN = "not run: "


def newest_first(documents: Sequence[Document]) -> list[Document]:
    """Return the documents sorted by date, the newest first."""
    return sorted(documents, key=lambda document: document["machine"].get("date", ""), reverse=True)


def with_true_peaks(documents: Sequence[Document]) -> list[Document]:
    """Return the runs whose peaks of memory can be used. A remark in the other runs states why theirs are too high."""
    return [document for document in documents if not document["machine"].get("moments_held_twice")]


def measured(document: Document, benchmark: str) -> list[Row]:
    """Return the rows of a benchmark, without those that record an error."""
    return [row for row in document["benchmarks"].get(benchmark, {"rows": []})["rows"] if "error" not in row]


def together(documents: Sequence[Document], benchmark: str, *cases: str) -> list[Row]:
    """Return the rows of these cases from the newest run that measured all of them.

    Rows of one run can be compared: the same machine and the same code measured them.

    Returns:
        One row per case, in the order of `cases`.

    Raises:
        LookupError: if no run measured all of the cases.
    """
    for document in newest_first(documents):
        rows = {row["case"]: row for row in measured(document, benchmark)}
        if all(case in rows for case in cases):
            return [rows[case] for case in cases]
    raise LookupError(f"No run measured {', '.join(cases)} ({benchmark}) together.")


def current(documents: Sequence[Document], benchmark: str) -> Iterator[tuple[Document, list[Row]]]:
    """Yield each run with the rows that no newer run has measured again; the newest run comes first.

    Runs without such rows are skipped. A newer profile replaces all rows of an older one, because kernels have
    different names in different versions.
    """
    seen: set[str] = set()
    for document in newest_first(documents):
        rows = measured(document, benchmark)
        new = [row for row in rows if _identity(row) not in seen]
        seen |= {_identity(row) for row in rows}
        if new:
            yield document, new


def _identity(row: Row) -> str:
    return group(row) if "part" in row else str(row["case"])


def group(row: Row) -> str:
    """Return the group of a row. A case is called "group: variant"; a name without a colon is its own group."""
    return str(row["case"].partition(": ")[0])


def unmeasured(documents: Sequence[Document]) -> dict[str, list[str]]:
    """Return the cases that have no measurement, by reason.

    Of each benchmark the newest run with rows counts. A failed case is listed even if an older run measured it. A case
    that the newest run skipped is listed only if no run measured it.
    """
    reasons: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for document in documents for name in document["benchmarks"]):
        entries = [found for document in newest_first(documents) if (found := document["benchmarks"].get(name))]
        newest = next((entry for entry in entries if entry["rows"]), entries[0])
        for row in newest["rows"]:
            error = row.get("error", "")
            measured_elsewhere = error.startswith(_NOT_RUN) and any(_has(entry, row["case"]) for entry in entries)
            if error and not measured_elsewhere:
                reasons.setdefault(error.removeprefix(_NOT_RUN), []).append(f"{row['case']} ({name})")
        if newest["status"] != "done":
            reasons.setdefault(newest["status"].removeprefix(_NOT_RUN), []).append(f"the rest of {name}")
    return reasons


def _has(entry: dict[str, Any], case: str) -> bool:
    """Return whether a run measured this case, or rows of the group with this name, without an error."""
    failed = any("error" in row for row in entry["rows"] if row["case"] == case)
    return not failed and any(f"{row['case']}: ".startswith(f"{case}: ") for row in entry["rows"] if "error" not in row)

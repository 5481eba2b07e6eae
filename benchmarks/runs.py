"""Several runs of one machine: the newest rows, and what has not been measured."""

from collections.abc import Iterator, Sequence
from typing import Any

from .harness import Row

Document = dict[str, Any]
_NOT_RUN = "not run: "


def newest_first(documents: Sequence[Document]) -> list[Document]:
    """The results of runs, sorted by date."""
    return sorted(documents, key=lambda document: document["machine"].get("date", ""), reverse=True)


def measured(document: Document, benchmark: str) -> list[Row]:
    """The rows of a benchmark that are no failures."""
    return [row for row in document["benchmarks"].get(benchmark, {"rows": []})["rows"] if "error" not in row]


def together(documents: Sequence[Document], benchmark: str, *cases: str) -> list[Row]:
    """The rows of the newest run that measured all of these cases, in their order.

    Raises:
        LookupError: if no run did.
    """
    for document in newest_first(documents):
        rows = {row["case"]: row for row in measured(document, benchmark)}
        if all(case in rows for case in cases):
            return [rows[case] for case in cases]
    raise LookupError(f"No run measured {', '.join(cases)} ({benchmark}) together.")


def current(documents: Sequence[Document], benchmark: str) -> Iterator[tuple[Document, list[Row]]]:
    """Runs, the newest first, each with the rows that no newer run measured again; runs without such rows are left out.

    A profile is replaced as a whole: kernels have other names in another version.
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
    """The group of a row: its case is "group: variant", or a name alone."""
    return str(row["case"].partition(": ")[0])


def unmeasured(documents: Sequence[Document]) -> dict[str, list[str]]:
    """What the newest run of each benchmark failed at, by reason; what it did not run counts only if no run has it."""
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
    """Whether a run measured a case, or the group of rows that a case of this name gives."""
    failed = any("error" in row for row in entry["rows"] if row["case"] == case)
    return not failed and any(f"{row['case']}: ".startswith(f"{case}: ") for row in entry["rows"] if "error" not in row)

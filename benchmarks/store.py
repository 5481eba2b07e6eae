"""The JSON file with the results of one run. It is rewritten after every row, so a killed run keeps its rows."""

import json
from pathlib import Path
from typing import Any

from magicdistill_core.files import write_text

from .harness import Row

FORMAT = 1


class Store:
    """One results file. Each change is on disk when the method returns. Only one process may write at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return the complete document, or an empty one if there is no file yet.

        Raises:
            ValueError: if the file has another format version.
        """
        if not self.path.exists():
            return {"format": FORMAT, "machine": {}, "benchmarks": {}}
        document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} has format {document.get('format')}, expected {FORMAT}. Remove the file or measure again."
            )
        return document

    def _write(self, document: dict[str, Any]) -> None:
        write_text(self.path, json.dumps(document, indent=1) + "\n")

    def set_machine(self, **facts: Any) -> None:
        """Add facts about the machine."""
        document = self.read()
        document["machine"] |= facts
        self._write(document)

    def begin(self, benchmark: str) -> None:
        """Record that a benchmark has begun."""
        document = self.read()
        document["benchmarks"][benchmark] = {"status": "begun", "rows": []}
        self._write(document)

    def add(self, benchmark: str, row: Row) -> None:
        """Add a row to a benchmark that has begun."""
        document = self.read()
        document["benchmarks"][benchmark]["rows"].append(row)
        self._write(document)

    def end(self, benchmark: str, status: str, seconds: float) -> None:
        """Record the final status of a benchmark and its duration in seconds."""
        document = self.read()
        entry = document["benchmarks"].setdefault(benchmark, {"rows": []})
        entry |= {"status": status, "whole_seconds": round(seconds, 1)}
        self._write(document)

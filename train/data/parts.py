"""Datasets in parts: the second format, in which a shard costs the same however many there are.

`dataset.json` holds the settings alone. Each part is a folder of its own with shards and an index `part.sqlite`, so
several processes write one dataset, each its own part. A shard and its samples enter the index in one transaction,
after the shard is on disk. Opening a dataset reads no list of samples, and a sample is found by its number in
logarithmic time.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from magicdistill_core.errors import cause

from .dataset_index import DatasetError, DatasetIndex, Place

PARTS_VERSION = 2
PART_PREFIX, PART_INDEX = "part-", "part.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    number INTEGER PRIMARY KEY, file TEXT NOT NULL, bytes INTEGER NOT NULL, samples INTEGER NOT NULL,
    total INTEGER NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS samples (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, shard INTEGER NOT NULL, row INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS sources (
    name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL
);
"""


class Part:
    """Read access to the index of one part.

    Attributes:
        name: name of its folder.
    """

    def __init__(self, folder: Path) -> None:
        """Open a part.

        Args:
            folder: the part's folder.

        Raises:
            DatasetError: if its index cannot be read.
        """
        self.name = folder.name
        self._folder = folder
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        # A part may grow while this process reads it. Only what it held at the beginning is seen.
        self.count, self.shards = self._one("SELECT count, shards FROM (SELECT COALESCE(MAX(number) + 1, 0) AS count "
            "FROM samples), (SELECT COALESCE(MAX(number) + 1, 0) AS shards FROM shards)")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_database": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __contains__(self, key: str) -> bool:
        return self._rows("SELECT 1 FROM samples WHERE key = ?", key) != []

    @property
    def digest(self) -> str:
        """The sha256 of all shards' sizes, samples and sources; empty without shards."""
        found = self._rows("SELECT digest FROM shards WHERE number = ?", self.shards - 1)
        return str(found[0][0]) if found else ""

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        found = self._rows("SELECT total FROM shards WHERE number = ?", self.shards - 1)
        return int(found[0][0]) if found else 0

    def sources(self) -> list[str]:
        """Return the names of the videos whose samples are all in the part."""
        return [str(name) for (name,) in self._rows("SELECT name FROM sources ORDER BY name")]

    def keys(self) -> Iterator[str]:
        """Yield the keys of the samples in their order."""
        step = 10_000
        for first in range(0, self.count, step):
            query = "SELECT key FROM samples WHERE number >= ? AND number < ? ORDER BY number"
            yield from (str(key) for (key,) in self._rows(query, first, min(first + step, self.count)))

    def place(self, number: int) -> Place:
        """Return where a sample is stored.

        Args:
            number: its number in the part, from 0.
        """
        file, size, samples, row, key = self._one(
            "SELECT file, bytes, samples, row, key FROM samples JOIN shards ON shard = shards.number "
            "WHERE samples.number = ?",
            number,
        )
        return Place(f"{self.name}/{file}", int(row), str(key), int(size), int(samples))

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        rows = self._rows(query, *values)
        if not rows:
            raise DatasetError(f"{self._folder / PART_INDEX} does not hold a sample that it held before. {_ADVICE}")
        return rows[0]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with explained(self._folder), self._lock:
            if self._database is None:
                self._database = connect(self._folder, "ro")
            return self._database.execute(query, values).fetchall()


class PartedIndex(DatasetIndex):
    """The index of a dataset in parts. Its samples are numbered part by part."""

    _parts: list[Part] = PrivateAttr(default=[])

    def open_parts(self, folder: Path) -> None:
        """Open the parts of a dataset.

        Args:
            folder: the dataset's folder.

        Raises:
            DatasetError: if a part cannot be read.
        """
        self._parts = [Part(path) for path in part_folders(folder)]

    @property
    def count(self) -> int:
        return sum(part.count for part in self._parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self._parts)

    @property
    def videos(self) -> list[str]:
        return [name for part in self._parts for name in part.sources()]

    def keys(self) -> Iterator[str]:
        for part in self._parts:
            yield from part.keys()

    def place(self, number: int) -> Place:
        for part in self._parts:
            if number < part.count:
                return part.place(number)
            number -= part.count
        raise IndexError(number)

    def shard_facts(self) -> list[list[Any]]:
        return [[part.name, part.count, part.digest] for part in self._parts]


def part_folders(folder: Path) -> list[Path]:
    """Return the folders of a dataset's parts that have an index, in the order of their names.

    Args:
        folder: the dataset's folder.
    """
    return sorted(path.parent for path in folder.glob(f"{PART_PREFIX}*/{PART_INDEX}"))


def connect(folder: Path, mode: str) -> sqlite3.Connection:
    """Open the index of a part.

    Args:
        folder: the part's folder.
        mode: SQLite's mode: `ro`, or `rwc`.
    """
    path = (folder / PART_INDEX).resolve()
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, check_same_thread=False)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Explain the errors of SQLite inside the block.

    Args:
        folder: the part's folder.

    Raises:
        DatasetError: if the index cannot be read or written.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise DatasetError(f"{folder / PART_INDEX} cannot be used ({cause(error)}). {_ADVICE}") from error


_ADVICE = "Copy the folder again from its original, or delete it and encode this part again."

"""The records of the cells: one JSON file per cell, and the results of all cells in one file.

A record belongs to the files and settings with which the cell was measured. A record of others is measured again.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text

Record = dict[str, Any]

INPUTS_FILE, RECORDS = "inputs.json", "cells"


@dataclass(frozen=True)
class Records:
    """The folder of records.

    Attributes:
        folder: the folder of one JSON file per cell.
        measured_with: the files and settings of the measures, as JSON data.
    """

    folder: Path
    measured_with: dict[str, Any]

    def read(self, cell: str) -> Record | None:
        """Return the record of a cell; None if there is none, or it was measured with other files or settings.

        Args:
            cell: the cell's name.

        Raises:
            ConfigError: if the file is damaged.
        """
        path = self._path(cell)
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
            measured_with = record["measured_with"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}). Delete it; the command then measures it again.") from error
        return record if measured_with == self.measured_with else None

    def write(self, cell: str, record: Record) -> None:
        """Write the record of a cell atomically.

        Args:
            cell: the cell's name.
            record: JSON data.
        """
        text = json.dumps(record | {"measured_with": self.measured_with})
        write_text(self._path(cell), text + "\n")

    def all(self, cells: Iterable[str]) -> dict[str, Record]:
        """Return the records that there are, by cell, without the facts that all of them share.

        Args:
            cells: names of cells; the result is in their order.
        """
        found = {cell: self.read(cell) for cell in cells}
        return {
            cell: {key: value for key, value in record.items() if key != "measured_with"}
            for cell, record in found.items()
            if record is not None
        }

    def _path(self, cell: str) -> Path:
        return self.folder / f"{cell}.json"


def check_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    """Check that the trainings in a folder were made from these inputs. A new folder gets a file that states them.

    Args:
        folder: the folder of all runs.
        inputs: the files and settings that determine the trainings, as JSON data.

    Raises:
        ConfigError: if the folder has trainings of other inputs.
    """
    path = folder / INPUTS_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_text(path, json.dumps(inputs, indent=1) + "\n")
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Restore it, or choose another folder with --runs.") from error
    if before != inputs:
        differing = sorted(name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name))
        was = ", ".join(f"{name}: {before.get(name)}, now {inputs.get(name)}" for name in differing)
        raise ConfigError(
            f"{folder} has trainings of other inputs ({was}). Their cells must not be mixed. Use the inputs of this "
            f"folder, or another folder with --runs."
        )


def write_results(out: Path, facts: dict[str, Any], records: dict[str, Record]) -> None:
    """Write the results of all cells into one JSON file, one line per cell.

    Args:
        out: the file.
        facts: what all records share.
        records: the records by cell.
    """
    head = json.dumps(facts, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(cell)}: {json.dumps(record)}" for cell, record in records.items())
    write_text(out, f'{head},\n "cells": {{\n{lines}\n }}\n}}\n')


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of `write_results`.

    Args:
        path: the file.

    Raises:
        ConfigError: if the file is missing or is not such a file.
    """
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(results["cells"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"{path} has no results of the tables ({error!r}). Measure them with `magicdistill pocket tables`."
        ) from error
    return results

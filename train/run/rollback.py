"""The record of a run's last rollback to an earlier checkpoint.

It is written before the rollback, so that a resumed run can finish a rollback whose process was killed. The guard
against collapse causes rollbacks (see `watch.guard`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from ..run_folder import FOLDER, ROLLBACK


@dataclass(frozen=True)
class Rollback:
    """A rollback.

    Attributes:
        update: the update to which the run rolls back.
        attempt: how often the run has rolled back, this time included.
    """

    update: int
    attempt: int


def note_rollback(run: Path, rollback: Rollback) -> None:
    """Write the record of a rollback; it replaces an earlier one.

    Args:
        run: the run's folder.
        rollback: the rollback that follows.
    """
    write_text(run / FOLDER / ROLLBACK, json.dumps({"step": rollback.update, "attempt": rollback.attempt}))


def last_rollback(run: Path) -> Rollback | None:
    """Return the last rollback, finished or not; None if the run never rolled back.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: if the record is damaged.
    """
    path = run / FOLDER / ROLLBACK
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Rollback(record["step"], record["attempt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}, the record of the run's last rollback, cannot be read ({error}). Delete it to resume without it: "
            "the run then counts only the rollbacks up to its newest checkpoint."
        ) from error

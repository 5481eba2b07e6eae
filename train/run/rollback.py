"""The note that a run goes back to an earlier checkpoint, which a process killed right after it does not forget."""

import json
from dataclasses import dataclass
from pathlib import Path

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from ..run_folder import FOLDER, ROLLBACK


@dataclass(frozen=True)
class Rollback:
    """To which update a run goes back, and how often it has gone back with this."""

    update: int
    attempt: int


def note_rollback(run: Path, rollback: Rollback) -> None:
    """Write the note, in place of an earlier one."""
    write_text(run / FOLDER / ROLLBACK, json.dumps({"step": rollback.update, "attempt": rollback.attempt}))


def last_rollback(run: Path) -> Rollback | None:
    """The last time that a run went back, whether or not it came to an end of it.

    Raises:
        CheckpointError: if the note is damaged.
    """
    path = run / FOLDER / ROLLBACK
    if not path.is_file():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return Rollback(note["step"], note["attempt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}, which says how often the run went back, cannot be read ({error}). Remove it to resume as if it "
            "had not gone back since its newest checkpoint."
        ) from error

"""The folders of a run's checkpoints: which ones belong to the run, which are kept, and the files `latest` and `best`.

People put files of their own between the checkpoints, such as a copy of one. Only a folder whose name and manifest name
the same update is a checkpoint of the run; everything else is left alone.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from ..run_folder import (
    BEST,
    FOLDER,
    LATEST,
    Manifest,
    checkpoint_folder,
    checkpoint_name,
    checkpoint_updates,
    read_manifest,
)
from .rollback import Rollback, note_rollback

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
_SET_ASIDE = "-set-aside"


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifests(run: Path) -> dict[int, Manifest]:
    """Return the manifests of a run's checkpoints by update, in ascending order.

    A folder without a readable manifest, or with the manifest of another update, is not a checkpoint of the run.

    Args:
        run: the run's folder.
    """
    found = {}
    for update in checkpoint_updates(run / FOLDER):
        with suppress(CheckpointError):
            manifest = read_manifest(run / FOLDER / checkpoint_name(update))
            if manifest.update == update:
                found[update] = manifest
    return found


def healthy_updates(run: Path) -> list[int]:
    """Return the updates of a run's healthy checkpoints (saved when the guard found no problem), in ascending order."""
    return [update for update, manifest in manifests(run).items() if manifest.healthy]


def stored_bytes(of: Mapping[int, Manifest]) -> int:
    """Return the size of checkpoints in bytes.

    Args:
        of: their manifests by update.
    """
    return sum(file.bytes for manifest in of.values() for file in manifest.files.values())


def clear_unfinished(run: Path) -> None:
    """Delete partly written checkpoints that a killed process left in a run. Only the main process calls this."""
    for leftover in (run / FOLDER).glob(f"{TEMPORARY}*"):
        _delete(leftover)


def publish(run: Path, temporary: Path, update: int) -> None:
    """Give a completely written folder the name of its checkpoint. Only the main process calls this.

    Args:
        run: the run's folder.
        temporary: the folder, whose files are on the disk.
        update: the update of the checkpoint.
    """
    root = run / FOLDER
    final = root / checkpoint_name(update)
    if update in manifests(run):
        # Left over from before a rollback. `remove` renames it first, so no incomplete folder keeps this name.
        remove(run, update)
    elif os.path.lexists(final):
        aside = _unused(final.with_name(f"{final.name}{_SET_ASIDE}"))
        final.rename(aside)
        logger.warning("%s was not a checkpoint of this run and had its name: it is now called %s", final, aside.name)
    temporary.rename(final)
    fsync(root)


def remove(run: Path, update: int) -> None:
    """Remove the checkpoint of an update. Only the main process calls this.

    Args:
        run: the run's folder.
        update: an update that has a checkpoint.
    """
    folder = run / FOLDER / checkpoint_name(update)
    # Rename before deleting: a process killed during the deletion must not leave an incomplete checkpoint.
    trash = _unused(folder.with_name(f"{TEMPORARY}removed-{folder.name}"))
    folder.rename(trash)
    _delete(trash)


def _unused(path: Path) -> Path:
    """Return the path, with a number at its end if something has its name."""
    paths = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000)))
    return next(candidate for candidate in paths if not os.path.lexists(candidate))


def _delete(path: Path) -> None:
    """Delete a file, a link or a folder. What another program still holds stays, with a warning."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be deleted (%s). The next save tries it again", path, error)


def keep_only(run: Path, newest: int, keep: int, since: int) -> None:
    """Make `best` name the best checkpoint, and remove those that need not be kept. Only the main process calls this.

    The best is the healthy checkpoint with the lowest measure. Without a measured one there is no file `best`.

    Args:
        run: the run's folder.
        newest: the update of the newest checkpoint. Later ones are left over from before a rollback; they stay until
            they are saved again.
        keep: how many of the newest checkpoints to keep. The best one and the newest healthy one are kept as well.
        since: the first update whose measure may be compared; earlier measures are ignored.
    """
    found = {update: manifest for update, manifest in manifests(run).items() if update <= newest}
    healthy = [update for update, manifest in found.items() if manifest.healthy]
    measured = {update: m for update in healthy if (m := found[update].measure) is not None and update >= since}
    best = min(measured, key=lambda update: measured[update], default=None)
    if best is None:
        (run / FOLDER / BEST).unlink(missing_ok=True)
    else:
        point(run, BEST, best)
    for update in set(found) - {*list(found)[-keep:], best, *healthy[-1:]}:
        remove(run, update)


def removable(run: Path) -> dict[int, Manifest]:
    """Return the manifests of the checkpoints that a run can do without, by update, in ascending order.

    These are the ones before the newest, except the best and the newest healthy one.

    Args:
        run: the run's folder.
    """
    found = manifests(run)
    named = {update for best in (False, True) if (update := _named(run, best=best)) is not None}
    newest = _named(run, best=False) or max(found, default=0)
    healthy = [update for update, manifest in found.items() if manifest.healthy and update <= newest]
    return {
        update: manifest
        for update, manifest in found.items()
        if update < newest and update not in {*named, *healthy[-1:]}
    }


def make_room(run: Path) -> list[int]:
    """Remove old checkpoints until another one fits on the disk. Only the main process calls this.

    Args:
        run: the run's folder.

    Returns:
        The removed updates: at least one, if there is a checkpoint that the run can do without (see `removable`).
    """
    removed: list[int] = []
    found = manifests(run)
    needed = stored_bytes({max(found): found[max(found)]}) if found else 0
    for update in removable(run):
        if removed and shutil.disk_usage(run).free >= needed:
            break
        remove(run, update)
        removed.append(update)
    if removed:
        logger.warning(
            "The disk of %s is full: removed the checkpoints of updates %s to save the next one. The newest and the "
            "best are kept. Free disk space, or lower checkpoint.keep",
            run,
            ", ".join(map(str, removed)),
        )
    return removed


def _named(run: Path, *, best: bool) -> int | None:
    """Return the update of the checkpoint that `latest` or `best` names; None if it names none."""
    try:
        return read_manifest(checkpoint_folder(run, best=best)).update
    except CheckpointError:
        return None


def point(run: Path, pointer: str, update: int) -> None:
    """Make a pointer file name the checkpoint of an update. Only the main process calls this.

    Args:
        run: the run's folder.
        pointer: `latest` or `best`.
        update: an update that has a checkpoint.
    """
    write_text(run / FOLDER / pointer, checkpoint_name(update))
    fsync(run / FOLDER)


def go_back(run: Path, to: Rollback) -> None:
    """Roll back to an earlier checkpoint and remove the later ones. Only the main process calls this.

    The rollback is recorded in a file first. If the process is killed meanwhile, the next one finishes the rollback.

    Args:
        run: the run's folder.
        to: the rollback, to an update that has a checkpoint.
    """
    note_rollback(run, to)
    fsync(run / FOLDER)
    point(run, LATEST, to.update)
    for later in manifests(run):
        if later > to.update:
            remove(run, later)

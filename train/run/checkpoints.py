"""Saving and loading the checkpoints of a run.

A checkpoint is the folder `RUN/checkpoints/step-000200/` (see `run_folder`). It contains the state of every engine, the
trained weights as ready-to-use model files, and a manifest with the size and checksum of every file. Each process
writes its *partitions*: the parts of the parameters' state that it holds (see `engines.state`).

A save writes to a hidden folder, flushes it to the disk, renames it, and then updates `latest`. A folder with a
checkpoint's name is therefore always complete, and a killed run keeps its last good checkpoint.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import atomic_file, write_text

from ..distributed import barrier, first_error, from_all, is_main, rank, world_size
from ..engines.state import Overlaps, Partition, SavedState
from ..run_folder import (
    BEST,
    FOLDER,
    LATEST,
    MANIFEST,
    Manifest,
    StoredFile,
    checkpoint_folder,
    checkpoint_name,
    checkpoint_updates,
    read_manifest,
)
from .rollback import Rollback, note_rollback

_TEMPORARY, _STATE = ".tmp-", "state"
# Size of one state file; this much is copied to main memory at a time.
_FILE_BYTES = 2 * 1024**3
_READ_BYTES = 16 * 1024**2


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            value = zlib.crc32(block, value)
    return value


def save(
    run: Path,
    states: Mapping[str, SavedState],
    export: Callable[[Path], None],
    *,
    update: int,
    keep: int,
    measure: float | None,
    since: int,
    healthy: bool,
    notes: dict[str, object],
) -> Path:
    """Save a checkpoint; a collective call.

    Args:
        run: the run's folder.
        states: the states to save, by name.
        export: function `(folder)`: writes the trained weights as model files into the folder; every process calls it.
        update: the number of generator updates made.
        keep: how many of the newest checkpoints to keep. The best one and the newest healthy one are kept as well.
        measure: the run's measure at this update, lower is better; None if unknown.
        since: the first update whose measure may be compared; earlier measures are ignored.
        healthy: whether the guard found no problem.
        notes: other data that a resumed run needs (JSON); the manifest returned by `load` contains them.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: on every process, if one of them could not write. Earlier checkpoints are unchanged.
    """
    root = run / FOLDER
    temporary = root / f"{_TEMPORARY}{checkpoint_name(update)}"
    if is_main():
        clear_unfinished(run)
    barrier()
    error, files = None, {}
    try:
        files = _write_states(temporary, states)
    except (OSError, SafetensorError) as problem:
        error = str(problem)
    _check_written(run, temporary, error)
    try:
        export(temporary)
        if is_main():
            files |= {p.name: StoredFile(p.stat().st_size, _checksum(p)) for p in temporary.iterdir() if p.is_file()}
    except (OSError, CheckpointError) as problem:
        error = str(problem.__cause__ or problem)
    _check_written(run, temporary, error)
    counters = {name: state.counter() for name, state in states.items()}
    all_files = {name: file for part in from_all(files) for name, file in part.items()}
    if is_main():
        manifest = Manifest(update, all_files, counters, measure, healthy, notes)
        try:
            _publish(root, temporary, manifest, keep, since)
        except OSError as problem:
            error = str(problem)
    _check_written(run, temporary, error)
    return root / checkpoint_name(update)


def clear_unfinished(run: Path) -> None:
    """Delete partly written checkpoints that a killed process left in a run. Only the main process calls this."""
    for leftover in (run / FOLDER).glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)


def stored_bytes(run: Path) -> int:
    """Return the size of all checkpoints of a run in bytes."""
    return sum(file.bytes for manifest in _manifests(run / FOLDER).values() for file in manifest.files.values())


def _write_states(folder: Path, states: Mapping[str, SavedState]) -> dict[str, StoredFile]:
    """Write this process's partitions; return the written files by their path inside the folder."""
    files: dict[str, StoredFile] = {}
    for name, state in states.items():
        for number, tensors in enumerate(_portions(state)):
            path = folder / _STATE / name / f"process-{rank():05d}-{number:03d}.safetensors"
            with atomic_file(path) as temporary:
                save_file(tensors, temporary)
            files[str(path.relative_to(folder))] = StoredFile(path.stat().st_size, _checksum(path))
    return files


def _portions(state: SavedState) -> Iterator[dict[str, Tensor]]:
    """Copy this process's partitions of a state to main memory, in portions of one file each."""
    tensors: dict[str, Tensor] = {}
    copied_bytes = 0
    for partition in state.partitions():
        for kind, tensor in partition.tensors.items() if partition.written else ():
            tensors[f"{kind}:{partition.start}:{partition.name}"] = tensor.detach().to("cpu", copy=True)
            copied_bytes += tensor.numel() * tensor.element_size()
        if copied_bytes >= _FILE_BYTES:
            yield tensors
            tensors, copied_bytes = {}, 0
    if tensors:
        yield tensors


def _publish(root: Path, temporary: Path, manifest: Manifest, keep: int, since: int) -> None:
    """Turn a completely written folder into a checkpoint.

    Flush it to the disk, rename it, update `latest` and `best`, and remove old checkpoints.
    """
    write_text(temporary / MANIFEST, manifest.to_json())
    for path in (*(p for p in temporary.rglob("*") if p.is_dir()), temporary):
        fsync(path)
    final = root / checkpoint_name(manifest.update)
    if final.exists():
        # Left over from before a rollback. `_remove` renames it first, so no incomplete folder keeps this name.
        _remove(final)
    temporary.rename(final)
    fsync(root)
    _point(root, LATEST, final)
    # Later checkpoints are left over from before a rollback; they stay until they are saved again.
    manifests = {update: other for update, other in _manifests(root).items() if update <= manifest.update}
    healthy = [update for update, m in manifests.items() if m.healthy]
    measured = {update: m for update in healthy if (m := manifests[update].measure) is not None}
    compared = [update for update in measured if update >= since]
    best = min(compared, key=lambda update: measured[update], default=max(measured, default=None))
    if best is not None:
        _point(root, BEST, root / checkpoint_name(best))
    for update in set(manifests) - {*sorted(manifests)[-keep:], best, *healthy[-1:]}:
        _remove(root / checkpoint_name(update))


def _manifests(root: Path) -> dict[int, Manifest]:
    """Read the manifests of all checkpoints, in order of updates; folders without a readable manifest are skipped."""
    found = {}
    for update in checkpoint_updates(root):
        with suppress(CheckpointError):
            found[update] = read_manifest(root / checkpoint_name(update))
    return found


def _remove(folder: Path) -> None:
    # Rename before deleting: a process killed during the deletion must not leave an incomplete checkpoint.
    trash = folder.with_name(f"{_TEMPORARY}removed-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash)


def _point(root: Path, pointer: str, folder: Path) -> None:
    write_text(root / pointer, folder.name)
    fsync(root)


def _check_written(run: Path, temporary: Path, error: str | None) -> None:
    """Raise on every process if one of them failed to write; a collective call."""
    error = first_error(error)
    if error is None:
        return
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
    updates = checkpoint_updates(run / FOLDER)
    last = f"The checkpoint of update {updates[-1]} is intact" if updates else "There is no checkpoint yet"
    free = shutil.disk_usage(run).free / 1e9
    raise CheckpointError(
        f"A checkpoint could not be written to {run / FOLDER} ({error}; {free:.1f} GB are free there). {last}. Free "
        "disk space or repair the disk, then continue with --resume."
    )


def point_to(run: Path, update: int) -> None:
    """Make `latest` name the checkpoint of an update. Only the main process calls this.

    Args:
        run: the run's folder.
        update: an update that has a checkpoint.
    """
    root = run / FOLDER
    _point(root, LATEST, root / checkpoint_name(update))


def go_back(run: Path, to: Rollback) -> None:
    """Roll back to an earlier checkpoint and remove the later ones. Only the main process calls this.

    The rollback is recorded in a file first. If the process is killed meanwhile, the next one finishes the rollback.

    Args:
        run: the run's folder.
        to: the rollback, to an update that has a checkpoint.
    """
    root, update = run / FOLDER, to.update
    note_rollback(run, to)
    fsync(root)
    point_to(run, update)
    for later in checkpoint_updates(root):
        if later > update:
            _remove(root / checkpoint_name(later))


def healthy_updates(run: Path) -> list[int]:
    """Return the updates of a run's healthy checkpoints (saved when the guard found no problem), in ascending order."""
    return [update for update, manifest in _manifests(run / FOLDER).items() if manifest.healthy]


def verified(run: Path) -> Path:
    """Return the folder of a run's newest checkpoint after checking the sizes of its files against the manifest.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: if there is no checkpoint, or one of its files is missing or has another size.
    """
    folder = checkpoint_folder(run)
    manifest = read_manifest(folder)
    sizes = {name: _size(folder / name) for name in manifest.files}
    wrong = [
        f"{name} ({'missing' if sizes[name] is None else f'{sizes[name]} bytes'}, expected {file.bytes} bytes)"
        for name, file in manifest.files.items()
        if sizes[name] != file.bytes
    ]
    if wrong:
        raise _damaged(folder, wrong)
    return folder


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _damaged(folder: Path, files: list[str]) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {folder.name} is damaged: {', '.join(files[:5])}. To resume from another checkpoint, write "
        f"the name of its step-* folder into {folder.parent / LATEST}."
    )


def load(run: Path, states: Mapping[str, SavedState]) -> Manifest:
    """Load the newest checkpoint into the states; a collective call.

    The checkpoint may have been saved by another number of processes or at another ZeRO stage.

    Args:
        run: the run's folder.
        states: the states to fill, by name; the checkpoint must have the same names.

    Returns:
        The checkpoint's manifest.

    Raises:
        CheckpointError: if `verified` raises it, a checksum is wrong, or the saved state belongs to another network or
            method.
    """
    folder = verified(run)
    manifest = read_manifest(folder)
    mine = list(manifest.files.items())[rank() :: world_size()]
    wrong = [name for name, file in mine if _checksum(folder / name) != file.crc32]
    if wrong := [name for part in from_all(wrong) for name in part]:
        raise _damaged(folder, [f"{name} (wrong checksum)" for name in wrong])
    if set(manifest.counters) != set(states):
        raise CheckpointError(
            f"The checkpoint {folder} contains the states {', '.join(manifest.counters)}; this run needs "
            f"{', '.join(states)}. Restore the method and settings with which the run was started."
        )
    for name, state in states.items():
        state.restore(manifest.counters[name], partial(_read, folder / _STATE / name))
    return manifest


def _reader(part: Any) -> Callable[[int, int], Tensor]:
    return lambda first, last: part[first:last]


def _read(folder: Path, partitions: list[Partition]) -> None:
    overlaps = Overlaps()
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            kind, start, name = key.split(":", 2)
            part = file.get_slice(key)
            overlaps.add(name, kind, int(start), part.get_shape()[0], _reader(part))
    overlaps.fill(partitions)

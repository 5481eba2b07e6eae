"""Saving and loading the checkpoints of a run.

A checkpoint is the folder `RUN/checkpoints/step-000200/` (see `run_folder`). It contains the state of every engine, the
trained weights as ready-to-use model files, and a manifest with the size and checksum of every file. Each process
writes its *partitions*: the parts of the parameters' state that it holds (see `engines.state`).

A save writes to a hidden folder, flushes it to the disk, renames it, and then updates `latest`. A folder with a
checkpoint's name is therefore always complete, and a killed run keeps its last good checkpoint.
"""

import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import atomic_file, write_text

from ..distributed import barrier, from_all, is_main, rank, world_size
from ..engines.state import Overlaps, Partition, SavedState
from ..run_folder import (
    FOLDER,
    LATEST,
    MANIFEST,
    Manifest,
    StoredFile,
    checkpoint_folder,
    checkpoint_name,
    read_manifest,
)
from . import checkpoint_folders as folders
from .disk_space import is_full

_STATE = "state"
# Size of one state file; this much is copied to main memory at a time.
_FILE_BYTES = 2 * 1024**3
_READ_BYTES = 16 * 1024**2


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
    since: int,
    healthy: bool,
    notes: dict[str, object],
) -> Path:
    """Save a checkpoint; a collective call. It has no measure until `record_measure` stores one.

    Args:
        run: the run's folder.
        states: the states to save, by name.
        export: function `(folder)`: writes the trained weights as model files into the folder; every process calls it.
        update: the number of generator updates made.
        keep: how many of the newest checkpoints to keep. The best one and the newest healthy one are kept as well.
        since: the first update whose measure may be compared; earlier measures are ignored.
        healthy: whether the guard found no problem.
        notes: other data that a resumed run needs (JSON); the manifest returned by `load` contains them.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: on every process, if one of them could not write. If the disk is full, checkpoints that the run
            can do without are removed first. The other ones are unchanged.
    """
    while True:
        try:
            _save(run, states, export, update, keep, since, healthy, notes)
        except _DiskFullError:
            removed = folders.make_room(run) if is_main() else []
            if not from_all(removed)[0]:
                raise
        else:
            return run / FOLDER / checkpoint_name(update)


def _save(
    run: Path,
    states: Mapping[str, SavedState],
    export: Callable[[Path], None],
    update: int,
    keep: int,
    since: int,
    healthy: bool,
    notes: dict[str, object],
) -> None:
    """Try once to save a checkpoint; a collective call. Arguments and errors as in `save`."""
    temporary = run / FOLDER / f"{folders.TEMPORARY}{checkpoint_name(update)}"
    if is_main():
        folders.clear_unfinished(run)
    barrier()
    error: Exception | None = None
    files: dict[str, StoredFile] = {}
    try:
        files = _write_states(temporary, states)
    except (OSError, SafetensorError) as problem:
        error = problem
    _check_written(run, temporary, error)
    try:
        export(temporary)
        if is_main():
            files |= {p.name: StoredFile(p.stat().st_size, _checksum(p)) for p in temporary.iterdir() if p.is_file()}
    except (OSError, CheckpointError) as problem:
        error = problem
    _check_written(run, temporary, error)
    counters = {name: state.counter() for name, state in states.items()}
    all_files = {name: file for part in from_all(files) for name, file in part.items()}
    if is_main():
        manifest = Manifest(update, all_files, counters, None, healthy, notes)
        try:
            _publish(run, temporary, manifest, keep, since)
        except OSError as problem:
            error = problem
    _check_written(run, temporary, error)


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


def record_measure(
    run: Path, update: int, measure: float, *, keep: int, since: int, healthy: bool, notes: Mapping[str, object]
) -> None:
    """Store the result of a validation in the checkpoint of its update. Only the main process calls this.

    Args:
        run: the run's folder.
        update: an update that has a checkpoint.
        measure: the measure of this checkpoint, lower is better.
        keep: as for `save`.
        since: as for `save`.
        healthy: whether the guard found no problem, this validation included.
        notes: data of `save` that the validation has changed.

    Raises:
        OSError: if the checkpoint cannot be written. It is unchanged then.
    """
    folder = run / FOLDER / checkpoint_name(update)
    manifest = read_manifest(folder)
    changed = replace(manifest, measure=measure, healthy=healthy, notes=manifest.notes | dict(notes))
    write_text(folder / MANIFEST, changed.to_json())
    folders.fsync(folder)
    folders.keep_only(run, update, keep, since)


def _publish(run: Path, temporary: Path, manifest: Manifest, keep: int, since: int) -> None:
    """Turn a completely written folder into a checkpoint.

    Flush it to the disk, rename it, update `latest` and `best`, and remove old checkpoints.
    """
    write_text(temporary / MANIFEST, manifest.to_json())
    for path in (*(p for p in temporary.rglob("*") if p.is_dir()), temporary):
        folders.fsync(path)
    folders.publish(run, temporary, manifest.update)
    try:
        folders.point(run, LATEST, manifest.update)
    except OSError as problem:
        # The checkpoint is complete. It needs no second save, only room for the pointer.
        if not (is_full(problem) and folders.make_room(run)):
            raise
        folders.point(run, LATEST, manifest.update)
    folders.keep_only(run, manifest.update, keep, since)


class _DiskFullError(CheckpointError):
    """Raised when a checkpoint does not fit on the disk."""


def _check_written(run: Path, temporary: Path, problem: Exception | None) -> None:
    """Raise on every process if one of them failed to write; a collective call."""
    mine = None if problem is None else (str(problem.__cause__ or problem), is_full(problem))
    failures = [failure for failure in from_all(mine) if failure is not None]
    if not failures:
        return
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
    updates = list(folders.manifests(run))
    last = f"The checkpoint of update {updates[-1]} is intact" if updates else "There is no checkpoint yet"
    free = f"{shutil.disk_usage(run).free / 1e9:.1f} GB are free there"
    kind = _DiskFullError if any(full for _, full in failures) else CheckpointError
    raise kind(
        f"A checkpoint could not be written to {run / FOLDER} ({failures[0][0]}; {free}). {last}. "
        "Free disk space or repair the disk, then continue with --resume."
    )


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
        # Only the files of the manifest: the folder may hold a copy that somebody made.
        paths = [folder / file for file in sorted(manifest.files) if Path(file).parent == Path(_STATE, name)]
        state.restore(manifest.counters[name], partial(_read, paths))
    return manifest


def _reader(part: Any) -> Callable[[int, int], Tensor]:
    return lambda first, last: part[first:last]


def _read(paths: list[Path], partitions: list[Partition]) -> None:
    overlaps = Overlaps()
    for path in paths:
        file = safe_open(path, framework="pt")
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            kind, start, name = key.split(":", 2)
            part = file.get_slice(key)
            overlaps.add(name, kind, int(start), part.get_shape()[0], _reader(part))
    overlaps.fill(partitions)

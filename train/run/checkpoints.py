"""Saving and loading a run: everything that is trained, under one tag that exists only when it is complete.

`RUN/checkpoints/step-000200/` (see `run_folder`) holds the state of every engine, the trained weights as files that can
be used at once, and a manifest with the size and checksum of every file. A save goes to a hidden folder first, reaches
the disk, is renamed, and only then becomes `latest`: a killed run keeps its last good checkpoint.
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
# What is copied to main memory and written at a time.
_FILE_BYTES = 2 * 1024**3
_READ_BYTES = 16 * 1024**2


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
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
    """Save everything after generator update `update`; a collective call.

    Args:
        states: what is saved, by name.
        export: writes the trained weights into a folder (called by every process).
        keep: how many of the newest checkpoints to keep. The best one, and the newest healthy one, stay besides.
        measure: how good the run is at this point, lower is better.
        since: measures of earlier updates are not compared with those from this one on.
        healthy: whether the guard had nothing to say.
        notes: what else a resumed run needs to know (JSON); `load` gives it back.

    Raises:
        CheckpointError: on every process, if one of them could not write. The checkpoints before are untouched.
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
    """Remove what a killed save has left. Called by the main process alone."""
    for left in (run / FOLDER).glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left)


def held_bytes(run: Path) -> int:
    """What the checkpoints of a run take."""
    return sum(file.bytes for manifest in _manifests(run / FOLDER).values() for file in manifest.files.values())


def _write_states(folder: Path, states: Mapping[str, SavedState]) -> dict[str, StoredFile]:
    """Write what this process holds; returns what it wrote, by path inside the folder."""
    files: dict[str, StoredFile] = {}
    for name, state in states.items():
        for number, tensors in enumerate(_portions(state)):
            path = folder / _STATE / name / f"process-{rank():05d}-{number:03d}.safetensors"
            with atomic_file(path) as temporary:
                save_file(tensors, temporary)
            files[str(path.relative_to(folder))] = StoredFile(path.stat().st_size, _checksum(path))
    return files


def _portions(state: SavedState) -> Iterator[dict[str, Tensor]]:
    """Copies in main memory of what this process writes of a state, a file's worth at a time."""
    tensors: dict[str, Tensor] = {}
    held = 0
    for partition in state.partitions():
        for kind, tensor in partition.tensors.items() if partition.written else ():
            tensors[f"{kind}:{partition.start}:{partition.name}"] = tensor.detach().to("cpu", copy=True)
            held += tensor.numel() * tensor.element_size()
        if held >= _FILE_BYTES:
            yield tensors
            tensors, held = {}, 0
    if tensors:
        yield tensors


def _publish(root: Path, temporary: Path, manifest: Manifest, keep: int, since: int) -> None:
    """Bring a complete folder to the disk, give it its name, let `latest` and `best` say so, and remove old ones."""
    write_text(temporary / MANIFEST, manifest.to_json())
    for path in (*(p for p in temporary.rglob("*") if p.is_dir()), temporary):
        fsync(path)
    final = root / checkpoint_name(manifest.update)
    if final.exists():
        # Of a future that this run went back from: out of the way in one step, so that no half of it keeps the name.
        _remove(final)
    temporary.rename(final)
    fsync(root)
    _point(root, LATEST, final)
    # Later ones are of a future that this run went back from; they stay until they are written anew.
    manifests = {update: known for update, known in _manifests(root).items() if update <= manifest.update}
    healthy = [update for update, m in manifests.items() if m.healthy]
    measured = {update: m for update in healthy if (m := manifests[update].measure) is not None}
    compared = [update for update in measured if update >= since]
    best = min(compared, key=lambda update: measured[update], default=max(measured, default=None))
    if best is not None:
        _point(root, BEST, root / checkpoint_name(best))
    for update in set(manifests) - {*sorted(manifests)[-keep:], best, *healthy[-1:]}:
        _remove(root / checkpoint_name(update))


def _manifests(root: Path) -> dict[int, Manifest]:
    """The manifests of all checkpoints, in order of their updates; what has no readable one is no checkpoint."""
    found = {}
    for update in checkpoint_updates(root):
        with suppress(CheckpointError):
            found[update] = read_manifest(root / checkpoint_name(update))
    return found


def _remove(folder: Path) -> None:
    # Its name goes at once: a process that is killed while files are removed leaves no half of a checkpoint.
    away = folder.with_name(f"{_TEMPORARY}removed-{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away)


def _point(root: Path, pointer: str, folder: Path) -> None:
    write_text(root / pointer, folder.name)
    fsync(root)


def _check_written(run: Path, temporary: Path, error: str | None) -> None:
    """All processes agree on whether one of them failed to write."""
    error = first_error(error)
    if error is None:
        return
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
    updates = checkpoint_updates(run / FOLDER)
    last = f"The checkpoint of update {updates[-1]} is intact" if updates else "There is no checkpoint yet"
    free = shutil.disk_usage(run).free / 1e9
    raise CheckpointError(
        f"A checkpoint could not be written to {run / FOLDER} ({error}; {free:.1f} GB are free there). {last}. Make "
        "room or mend the disk, then continue with --resume."
    )


def point_to(run: Path, update: int) -> None:
    """Let `latest` name an earlier checkpoint. Called by the main process alone."""
    root = run / FOLDER
    _point(root, LATEST, root / checkpoint_name(update))


def go_back(run: Path, to: Rollback) -> None:
    """Make an earlier checkpoint the newest: later ones are removed. Called by the main process alone.

    That the run goes back is noted first, so that a process that is killed meanwhile does not forget it.
    """
    root, update = run / FOLDER, to.update
    note_rollback(run, to)
    fsync(root)
    point_to(run, update)
    for later in checkpoint_updates(root):
        if later > update:
            _remove(root / checkpoint_name(later))


def healthy_updates(run: Path) -> list[int]:
    """The updates of the checkpoints that were saved while the guard had nothing to say, in order."""
    return [update for update, manifest in _manifests(run / FOLDER).items() if manifest.healthy]


def verified(run: Path) -> Path:
    """The folder of a run's newest checkpoint, its files' sizes checked against the manifest.

    Raises:
        CheckpointError: if there is none, or if a file of it is missing or has another size.
    """
    folder = checkpoint_folder(run)
    manifest = read_manifest(folder)
    found = {name: _size(folder / name) for name in manifest.files}
    wrong = [
        f"{name} ({'missing' if found[name] is None else found[name]} of {file.bytes} bytes)"
        for name, file in manifest.files.items()
        if found[name] != file.bytes
    ]
    if wrong:
        raise _damaged(folder, wrong)
    return folder


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _damaged(folder: Path, files: list[str]) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {folder.name} is damaged: {', '.join(files[:5])}. Write the name of another step-* folder "
        f"into {folder.parent / LATEST}, and resume from that."
    )


def load(run: Path, states: Mapping[str, SavedState]) -> Manifest:
    """Bring everything back to the newest checkpoint; returns its manifest. A collective call.

    Any number of processes, at any ZeRO stage, takes up what any other number saved.

    Raises:
        CheckpointError: as `verified`; if a checksum is wrong; or if the state is of another network or method.
    """
    folder = verified(run)
    manifest = read_manifest(folder)
    mine = list(manifest.files.items())[rank() :: world_size()]
    wrong = [name for name, file in mine if _checksum(folder / name) != file.crc32]
    if wrong := [name for part in from_all(wrong) for name in part]:
        raise _damaged(folder, [f"{name} (other contents than were written)" for name in wrong])
    if set(manifest.counters) != set(states):
        raise CheckpointError(
            f"The checkpoint {folder} holds the state of {', '.join(manifest.counters)}; this run needs "
            f"{', '.join(states)}. Restore the method and settings that the run was started with."
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

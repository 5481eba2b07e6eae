"""Saving and loading a run: both engines and what was trained, under one tag that exists only when it is complete.

`RUN/checkpoints/step-000200/` (see `run_folder`) holds the engines' states, the trained weights as files that can be
used at once, and a manifest. A save goes to a hidden folder first, reaches the disk, is renamed, and only then becomes
`latest`: a killed run keeps its last good checkpoint.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from .distributed import barrier, is_main
from .engines import FAKE, GENERATOR, Engine, Players
from .run_folder import FOLDER, LATEST, checkpoint_folder, step_name

MANIFEST = "manifest.json"
_TAG = "state"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def save(run: Path, step: int, players: Players, export: Callable[[Path], None], keep: int) -> Path:
    """Save both engines after generator update `step`; a collective call.

    Args:
        export: writes the trained weights into a folder (called by every process).
        keep: how many checkpoints to keep, this one included.
    """
    root = run / FOLDER
    temporary, final = root / f".tmp-{step_name(step)}", root / step_name(step)
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    for name in (GENERATOR, FAKE):
        players.engine(name).engine.save_checkpoint(
            str(temporary / name),
            tag=_TAG,
            client_state={"step": step},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
    export(temporary)
    barrier()
    if is_main():
        for path in temporary.rglob("*"):
            _fsync(path)
        write_text(temporary / MANIFEST, json.dumps({"step": step, "files": _sizes(temporary)}, indent=1))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _fsync(root)
        write_text(root / LATEST, final.name)
        for old in sorted(root.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    barrier()
    return final


def verified(run: Path) -> Path:
    """The folder of a run's newest checkpoint, its files checked against the manifest.

    Raises:
        CheckpointError: if there is none, or if a file of it is missing or has another size.
    """
    folder = checkpoint_folder(run)
    advice = f"Write the name of another step-* folder into {run / FOLDER / LATEST}."
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"The checkpoint {folder} has no readable manifest. {advice}") from error
    found = _sizes(folder)
    wrong = [
        f"{name} ({found.get(name, 'missing')} of {size} bytes)"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if wrong:
        raise CheckpointError(f"The checkpoint {folder.name} is damaged: {', '.join(wrong[:5])}. {advice}")
    return folder


def load(run: Path, players: Players) -> int:
    """Bring both engines back to the newest checkpoint; returns its step. A collective call.

    Raises:
        CheckpointError: as `verified`, or if an engine's state does not load.
    """
    folder = verified(run)
    steps = {name: _load_engine(players.engine(name), folder / name) for name in (GENERATOR, FAKE)}
    if len(set(steps.values())) != 1:
        raise CheckpointError(f"The engines in {folder} are of different steps ({steps}). Use another checkpoint.")
    return steps[GENERATOR]


def _load_engine(engine: Engine, folder: Path) -> int:
    # DeepSpeed answers a missing file with (None, None), and unpickles: the manifest has vouched for our own files.
    path, client = engine.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if path is None:
        raise CheckpointError(f"DeepSpeed could not load {folder}. Was it saved with this many processes and stage?")
    return int(client["step"])

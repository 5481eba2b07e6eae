"""Saved state of a run: both engines and what was trained, under one tag that exists only when it is complete.

`RUN/checkpoints/step-000200/` holds the engines' states, `generator.safetensors` or `generator_lora.safetensors`,
`fake_lora.safetensors` and a manifest; `RUN/checkpoints/latest` names the newest. A save goes to a hidden folder first,
reaches the disk, is renamed, and only then becomes `latest`: a killed run keeps its last good checkpoint.
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

FOLDER, LATEST, MANIFEST = "checkpoints", "latest", "manifest.json"
GENERATOR_FILE, GENERATOR_LORA_FILE, FAKE_LORA_FILE = (
    "generator.safetensors",
    "generator_lora.safetensors",
    "fake_lora.safetensors",
)
_TAG = "state"


def step_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:06d}"


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


def latest(run: Path) -> Path:
    """The folder of a run's newest checkpoint, its files checked against the manifest.

    Raises:
        CheckpointError: if there is none, or if a file of it is missing or has another size.
    """
    pointer = run / FOLDER / LATEST
    if not pointer.is_file():
        raise CheckpointError(
            f"{run} has no checkpoint to resume from: {pointer} is missing. Start the run without --resume, or name "
            f"the folder of a run that has saved at least once."
        )
    folder = run / FOLDER / pointer.read_text().strip()
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} that `latest` names is missing or has no manifest. Write the name of another "
            f"step-* folder into {pointer}."
        ) from error
    found = _sizes(folder)
    wrong = [
        f"{name} ({found.get(name, 'missing')} of {size} bytes)"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint {folder.name} is damaged: {', '.join(wrong[:5])}. Write the name of another step-* "
            f"folder into {pointer}."
        )
    return folder


def load(run: Path, players: Players) -> int:
    """Bring both engines back to the newest checkpoint; returns its step. A collective call.

    Raises:
        CheckpointError: as `latest`, or if an engine's state does not load.
    """
    folder = latest(run)
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

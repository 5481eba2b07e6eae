"""Where a run keeps what: `run.json`, and checkpoints by step of which `latest` names the newest.

Apart from the trainer, so that reading a run needs none of what training needs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magicdistill_core.errors import CheckpointError

RUN_FILE = "run.json"
FOLDER, LATEST = "checkpoints", "latest"
GENERATOR_FILE, GENERATOR_LORA_FILE, FAKE_LORA_FILE = (
    "generator.safetensors",
    "generator_lora.safetensors",
    "fake_lora.safetensors",
)


def step_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:06d}"


@dataclass(frozen=True)
class RunFacts:
    """What a run was started with."""

    teacher: Path
    mode: Literal["full", "lora"]


def run_facts(run: Path) -> RunFacts:
    """Read `run.json`.

    Raises:
        CheckpointError: if the folder is no run, or the file is damaged.
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run} is no training run: it has no {RUN_FILE}. Name the folder that a configuration calls `run`."
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        teacher, mode = Path(facts["teacher"]), facts["mode"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Restore it, or train again.") from error
    if mode not in ("full", "lora"):
        raise CheckpointError(f"{path} says mode {mode!r}, expected full or lora. Restore it, or train again.")
    return RunFacts(teacher, mode)


def checkpoint_folder(run: Path, step: int | None = None) -> Path:
    """The folder of a run's newest checkpoint, or of the one of a step.

    Raises:
        CheckpointError: listing the steps that exist, if there is no such checkpoint or `latest` names none.
    """
    root = run / FOLDER
    steps = sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*") if path.is_dir())
    there = f"Name one of its steps: {', '.join(map(str, steps))}." if steps else "It has saved no step yet."
    if step is not None:
        if step not in steps:
            raise CheckpointError(f"The run {run} has no checkpoint of step {step}. {there}")
        return root / step_name(step)
    pointer = root / LATEST
    if not pointer.is_file():
        raise CheckpointError(f"The run {run} has no file {FOLDER}/{LATEST}. {there}")
    folder = root / pointer.read_text(encoding="utf-8").strip()
    if folder.parent != root or not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name!r}, which does not exist. {there}")
    return folder

"""Where a run keeps what: `run.json`, and checkpoints by update of which `latest` names the newest and `best` the best.

Apart from the trainer, so that reading a run needs none of what training needs.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from magicdistill_core.errors import CheckpointError

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
METRICS_FILE, ABANDONED_FILE, EVENTS_FILE = "metrics.jsonl", "metrics-abandoned.jsonl", "events.jsonl"
VALIDATION, REPORT = "validation", "report"
FOLDER, LATEST, BEST, MANIFEST = "checkpoints", "latest", "best", "manifest.json"
# Beside them: to which update the run went back last, and how often it has.
ROLLBACK = "rollback.json"
GENERATOR_FILE, GENERATOR_LORA_FILE, FAKE_LORA_FILE = (
    "generator.safetensors",
    "generator_lora.safetensors",
    "fake_lora.safetensors",
)


def checkpoint_name(update: int) -> str:
    """The folder name of an update's checkpoint."""
    return f"step-{update:06d}"


@dataclass(frozen=True)
class StoredFile:
    """Size and CRC-32 of a file as it was written."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and every file of it.

    Attributes:
        update: generator updates made.
        files: by path inside the checkpoint.
        counters: how many updates each kept state has seen.
        measure: how good the run was, lower is better; None if that was not known yet.
        healthy: whether the guard had nothing to say.
        notes: what else a resumed run needs to know.
    """

    update: int
    files: dict[str, StoredFile]
    counters: dict[str, int]
    measure: float | None
    healthy: bool
    notes: dict[str, Any]

    def to_json(self) -> str:
        """As text, for `read_manifest`."""
        facts = asdict(self)
        # The word of the file format.
        return json.dumps({"step": facts.pop("update"), **facts}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: if there is none that can be read.
    """
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: StoredFile(**file) for name, file in tree.pop("files").items()}
        return Manifest(update=tree.pop("step"), files=files, **tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} has no readable manifest. Write the name of another step-* folder into "
            f"{folder.parent / LATEST}, and resume from that."
        ) from error


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


def checkpoint_updates(root: Path) -> list[int]:
    """The updates whose checkpoints lie in a run's folder of checkpoints, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*") if path.is_dir())


def checkpoint_folder(run: Path, update: int | None = None, *, best: bool = False) -> Path:
    """The folder of a run's newest checkpoint, of the best one, or of the one of an update.

    Raises:
        CheckpointError: listing the updates that exist, if there is no such checkpoint.
    """
    root = run / FOLDER
    updates = checkpoint_updates(root)
    there = f"Name one of its updates: {', '.join(map(str, updates))}." if updates else "It has saved no update yet."
    if update is not None:
        if update not in updates:
            raise CheckpointError(f"The run {run} has no checkpoint of update {update}. {there}")
        return root / checkpoint_name(update)
    pointer = root / (BEST if best else LATEST)
    if not pointer.is_file():
        raise CheckpointError(f"The run {run} has no file {FOLDER}/{pointer.name}. {there}")
    folder = root / pointer.read_text(encoding="utf-8").strip()
    if folder.parent != root or not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name!r}, which does not exist. {there}")
    return folder

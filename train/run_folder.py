"""The files of a run: names, `run.json`, checkpoint folders, and the pointer files `latest` and `best`.

Reading a run needs only this module, and none of the trainer's dependencies.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from magicdistill_core.errors import CheckpointError

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
METRICS_FILE, ABANDONED_FILE, EVENTS_FILE = "metrics.jsonl", "metrics-abandoned.jsonl", "events.jsonl"
VALIDATION_FILE = "validation.jsonl"
VALIDATION, REPORT = "validation", "report"
FOLDER, LATEST, BEST, MANIFEST = "checkpoints", "latest", "best", "manifest.json"
# In the folder of checkpoints: the update of the last rollback, and the number of rollbacks.
ROLLBACK = "rollback.json"
# The key of `run.json` with the LoRAs that were merged into the teacher.
TEACHER_LORAS = "teacher_loras"
GENERATOR_FILE, GENERATOR_LORA_FILE, FAKE_LORA_FILE = (
    "generator.safetensors",
    "generator_lora.safetensors",
    "fake_lora.safetensors",
)


def checkpoint_name(update: int) -> str:
    """Return the folder name of an update's checkpoint, such as `step-000200`.

    In the fake warm-up the update is minus the number of rounds left: `step--00012` has twelve left.
    """
    return f"step-{update:06d}"


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and CRC-32 of a file at the time of writing."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Description of a checkpoint, with all its files.

    Attributes:
        update: number of generator updates made; in the fake warm-up minus the number of rounds left.
        files: size and checksum of each file, by path inside the checkpoint.
        counters: number of updates that each saved state had made, by the state's name.
        measure: mean energy score of the validation at this update, lower is better; None if it was not validated.
        healthy: whether the guard had no finding.
        notes: further state of a resumed run, as JSON data.
    """

    update: int
    files: dict[str, StoredFile]
    counters: dict[str, int]
    measure: float | None
    healthy: bool
    notes: dict[str, Any]

    def to_json(self) -> str:
        """Return the manifest as JSON text, for `read_manifest`."""
        facts = asdict(self)
        # The file format calls an update `step`.
        return json.dumps({"step": facts.pop("update"), **facts}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Args:
        folder: the checkpoint's folder.

    Raises:
        CheckpointError: if the manifest is missing or cannot be read.
    """
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: StoredFile(**file) for name, file in tree.pop("files").items()}
        return Manifest(update=tree.pop("step"), files=files, **tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} has no readable manifest. Write the name of another step-* folder into "
            f"{folder.parent / LATEST}, and resume from that checkpoint."
        ) from error


@dataclass(frozen=True)
class RunFacts:
    """The teacher and the mode with which a run was started.

    Attributes:
        teacher: path of the teacher's model file or diffusers folder.
        mode: `full` if the run trains all weights, `lora` if it trains low-rank branches.
        teacher_loras: files and weights of the LoRAs that were merged into the teacher.
    """

    teacher: Path
    mode: Literal["full", "lora"]
    teacher_loras: tuple[tuple[Path, float], ...] = ()


def run_facts(run: Path) -> RunFacts:
    """Read the teacher and the mode of a run from its `run.json`.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: if the folder is not a training run, or the file is damaged.
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run} is not a training run, because it has no {RUN_FILE}. Give the folder of the setting `run`."
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        teacher, mode = Path(facts["teacher"]), facts["mode"]
        loras = tuple((Path(lora["file"]), float(lora["weight"])) for lora in facts.get(TEACHER_LORAS, []))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Restore the file, or train again.") from error
    if mode not in ("full", "lora"):
        raise CheckpointError(f"{path} has mode {mode!r}. Expected full or lora. Restore the file, or train again.")
    return RunFacts(teacher, mode, loras)


def update_of(name: str) -> int | None:
    """Return the update in a name of the form `step-000200`; None for any other name, such as `step-000200-copy`.

    Args:
        name: the name of a checkpoint's folder, or of a file of samples without its suffix.
    """
    if (match := re.fullmatch("step-(-?[0-9]+)", name)) is None:
        return None
    update = int(match[1])
    return update if name == checkpoint_name(update) else None


def checkpoint_updates(root: Path) -> list[int]:
    """Return the updates that have a folder with a checkpoint's name, in ascending order.

    Args:
        root: the run's folder of checkpoints, `RUN/checkpoints`; a missing folder has none.
    """
    updates = ((update_of(path.name), path) for path in root.glob("step-*"))
    return sorted(update for update, path in updates if update is not None and path.is_dir())


def checkpoint_folder(run: Path, update: int | None = None, *, best: bool = False) -> Path:
    """Return the folder of a checkpoint.

    Args:
        run: the run's folder.
        update: update of the checkpoint; None means the newest, or the best if `best` is set.
        best: whether to take the best checkpoint; no effect if `update` is given.

    Raises:
        CheckpointError: if there is no such checkpoint; the message lists the updates that have one.
    """
    root = run / FOLDER
    updates = checkpoint_updates(root)
    available = (
        f"Choose one of its updates: {', '.join(map(str, updates))}." if updates else "It has saved no checkpoint yet."
    )
    if update is not None:
        if update not in updates:
            raise CheckpointError(f"The run {run} has no checkpoint of update {update}. {available}")
        return root / checkpoint_name(update)
    pointer = root / (BEST if best else LATEST)
    if not pointer.is_file():
        reason = " The best checkpoint is chosen by validations (validation.every)." if best else ""
        raise CheckpointError(f"The run {run} has no file {FOLDER}/{pointer.name}.{reason} {available}")
    folder = root / pointer.read_text(encoding="utf-8").strip()
    if folder.parent != root or not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name!r}, which does not exist. {available}")
    return folder

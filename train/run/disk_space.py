"""The disk of a run: has it space for the checkpoints (checked before the first update), and is it full?"""

import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from magicdistill_core.errors import ConfigError

from ..distributed import first_error, from_all, is_main
from ..engines.state import MASTER, MOMENTS, SavedState
from . import checkpoint_folders as folders

logger = logging.getLogger(__name__)

# In addition to the `keep` newest checkpoints: the best, the newest healthy one, and the one that is being written.
EXTRA_CHECKPOINTS = 3


# safetensors reports the number of the system's error only in its text.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = tuple(f"(os error {number})" for number in _FULL)


def is_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that a disk or a user's quota on it is full."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or any(text in str(cause) for text in _FULL_TEXTS):
            return True
        cause = cause.__cause__
    return False


def state_bytes(states: Mapping[str, SavedState]) -> int:
    """Return the bytes of a checkpoint of these states, summed over all processes; a collective call.

    An optimizer's moments do not exist before its first step. They are counted with the size of the fp32 weights.

    Args:
        states: the states of a checkpoint, by name.
    """
    total = 0
    for state in states.values():
        for partition in state.partitions():
            kinds = {kind: tensor.numel() * tensor.element_size() for kind, tensor in partition.tensors.items()}
            if MASTER in kinds:
                kinds |= dict.fromkeys(MOMENTS, kinds[MASTER])
            total += sum(kinds.values()) if partition.written else 0
    return sum(from_all(total))


def check_room(run: Path, checkpoint: int, keep: int) -> None:
    """Check the free disk space of a run; a collective call.

    A warning is logged if the disk cannot hold all checkpoints that the run keeps.

    Args:
        run: the run's folder, which need not exist.
        checkpoint: bytes of one checkpoint.
        keep: the setting `checkpoint.keep`.

    Raises:
        ConfigError: on every process, if one more checkpoint does not fit, even without the ones that the run can do
            without.
    """
    error = first_error(_check_room(run, checkpoint, keep) if is_main() else None)
    if error is not None:
        raise ConfigError(error)


def _check_room(run: Path, checkpoint: int, keep: int) -> str | None:
    folders.clear_unfinished(run)
    existing = next(folder for folder in (run, *run.resolve().parents) if folder.is_dir())
    free, stored = shutil.disk_usage(existing).free, folders.stored_bytes(folders.manifests(run))
    gigabytes = f"{checkpoint / 1e9:,.1f} GB"
    if free + folders.stored_bytes(folders.removable(run)) < checkpoint:
        return (
            f"One checkpoint of this run takes {gigabytes}, but the disk of {run} has only {free / 1e9:,.1f} GB free. "
            "Free disk space, or choose a folder on another disk (run=FOLDER)."
        )
    needed = (keep + EXTRA_CHECKPOINTS) * checkpoint
    if free + stored < needed:
        logger.warning(
            "The checkpoints of this run will take up to %.1f GB (%s each: checkpoint.keep=%d, the best, the newest "
            "healthy one, and the one that is being written). The disk of %s has only %.1f GB for them. When it is "
            "full, the run keeps only the newest, the best and the newest healthy one, and ends if the next one does "
            "not fit either. Free disk space, lower checkpoint.keep, or choose a folder on another disk.",
            needed / 1e9,
            gigabytes,
            keep,
            run,
            (free + stored) / 1e9,
        )
    return None

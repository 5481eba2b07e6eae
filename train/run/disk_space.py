"""A check that the disk has space for a run's checkpoints, made before the first update."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from magicdistill_core.errors import ConfigError

from ..distributed import first_error, from_all, is_main
from ..engines.state import MASTER, MOMENTS, SavedState
from . import checkpoints

logger = logging.getLogger(__name__)

# In addition to the `keep` newest checkpoints: the best, the newest healthy one, and the one that is being written.
EXTRA_CHECKPOINTS = 3


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
        ConfigError: on every process, if not even one checkpoint fits.
    """
    error = first_error(_check_room(run, checkpoint, keep) if is_main() else None)
    if error is not None:
        raise ConfigError(error)


def _check_room(run: Path, checkpoint: int, keep: int) -> str | None:
    checkpoints.clear_unfinished(run)
    existing = next(folder for folder in (run, *run.resolve().parents) if folder.is_dir())
    free, stored = shutil.disk_usage(existing).free, checkpoints.stored_bytes(run)
    gigabytes = f"{checkpoint / 1e9:,.1f} GB"
    if free < checkpoint:
        return (
            f"One checkpoint of this run takes {gigabytes}, but the disk of {run} has only {free / 1e9:,.1f} GB free. "
            "Free disk space, or choose a folder on another disk (run=FOLDER)."
        )
    needed = (keep + EXTRA_CHECKPOINTS) * checkpoint
    if free + stored < needed:
        logger.warning(
            "The checkpoints of this run will take up to %.1f GB (%s each: checkpoint.keep=%d, the best, the newest "
            "healthy one, and the one that is being written). The disk of %s has only %.1f GB for them, and the run "
            "ends when it is full. Free disk space, lower checkpoint.keep, or choose a folder on another disk.",
            needed / 1e9,
            gigabytes,
            keep,
            run,
            (free + stored) / 1e9,
        )
    return None

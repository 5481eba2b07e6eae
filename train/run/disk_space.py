"""Whether the disk has room for what a run keeps: asked before the first update, not found out hours later."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from magicdistill_core.errors import ConfigError

from ..distributed import first_error, from_all, is_main
from ..engines.state import MASTER, MOMENTS, SavedState
from . import checkpoints

logger = logging.getLogger(__name__)

# Besides the newest ones: the best, the newest healthy one, and the one that is being written.
BESIDES = 3


def state_bytes(states: Mapping[str, SavedState]) -> int:
    """What a checkpoint of these states takes, over all processes (a collective call).

    Before an optimizer's first step its moments do not exist; they will be as large as the fp32 weights.
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
    """Refuse a run whose next checkpoint does not fit, and warn if all that it is to keep does not; a collective call.

    Args:
        checkpoint: bytes of one.
        keep: `checkpoint.keep`.

    Raises:
        ConfigError: on every process.
    """
    error = first_error(_check_room(run, checkpoint, keep) if is_main() else None)
    if error is not None:
        raise ConfigError(error)


def _check_room(run: Path, checkpoint: int, keep: int) -> str | None:
    checkpoints.clear_unfinished(run)
    there = next(folder for folder in (run, *run.resolve().parents) if folder.is_dir())
    free, held = shutil.disk_usage(there).free, checkpoints.held_bytes(run)
    gigabytes = f"{checkpoint / 1e9:,.1f} GB"
    if free < checkpoint:
        return (
            f"One checkpoint of this run takes {gigabytes}, and {run} has {free / 1e9:,.1f} GB left. Make room there, "
            "or name a folder on another disk (run=FOLDER)."
        )
    most = (keep + BESIDES) * checkpoint
    if free + held < most:
        logger.warning(
            "The checkpoints of this run will take up to %.1f GB (%s each: checkpoint.keep=%d, the best, the newest "
            "healthy one, and the one that is being written), and %s has %.1f GB for them. The run ends when the disk "
            "is full: make room there, lower checkpoint.keep, or name a folder on another disk.",
            most / 1e9,
            gigabytes,
            keep,
            run,
            (free + held) / 1e9,
        )
    return None

"""What a run says and records when it ends early."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from magicdistill_core.errors import CheckpointError, MagicDistillError

from ..config.training import TrainConfig
from ..console import command
from ..distributed import is_lost_process, is_main
from ..run_folder import CONFIG_FILE, RUN_FILE, checkpoint_folder, read_manifest
from ..watch.log import add_event
from .state import GuardError


class RunError(MagicDistillError):
    """Raised when a run ends early for a reason outside its configuration."""


class LostProcessError(RunError):
    """Raised when another process of the run has died or does not answer.

    A launcher such as `torchrun` ends this process soon, so nothing may take long any more.
    """


def explained(error: BaseException, config: TrainConfig) -> BaseException:
    """Explain a lost process, missing memory or an error of a disk to the user; return any other error unchanged.

    Args:
        error: the error that ended the run.
        config: the run's configuration.
    """
    path = config.run / CONFIG_FILE
    again = f"The last checkpoint is intact: continue with {command('train', path, '--resume')}."
    advice = again if path.is_file() else "Then start the run again."
    if is_lost_process(error):
        return LostProcessError(
            f"Another process of this run has died, or has not answered for {config.timeout:g} minutes ({error}). The "
            f"last lines of its output show the cause. {advice}"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return RunError(
            f"The GPU's memory is too small for this run, or another program uses it ({str(error).splitlines()[0]}). "
            f"`magicdistill memory` shows what a configuration needs. Set model.activation_checkpointing=true, lower "
            f"data.micro_batch, or partition more (zero.stage=3, context_parallel, more GPUs). {advice}"
        )
    if isinstance(error, OSError):
        return RunError(
            f"A file of the run cannot be read or written ({error}). Free disk space or repair the disk. {advice}"
        )
    return error


@contextmanager
def recorded_failure(config: TrainConfig, updates: Callable[[], int] | None = None) -> Iterator[None]:
    """Add an error inside the block to the run's `events.jsonl`, and explain it (`explained`).

    Args:
        config: the run's configuration.
        updates: function that returns the number of generator updates made; None before the run begins. Then a wrong
            input is no event, and the number is the newest checkpoint's.

    Raises:
        RunError: if `explained` explains the error. Any other error is raised unchanged.
    """
    try:
        yield
    except GuardError:  # has an event of its own
        raise
    except BaseException as error:
        problem = explained(error, config)
        if updates is not None:
            _record(config.run, problem, updates())
        elif not isinstance(error, MagicDistillError):
            _record(config.run, problem, _saved_updates(config.run))
        if problem is error:
            raise
        raise problem from error


def _record(run: Path, error: BaseException, update: int) -> None:
    if not is_main() or not (run / RUN_FILE).is_file():
        return
    text = str(error) if isinstance(error, MagicDistillError) else f"{type(error).__name__}: {error}"
    # A full disk may be the reason of the failure.
    with suppress(OSError):
        add_event(run, "failed", update, error=text)


def _saved_updates(run: Path) -> int:
    with suppress(CheckpointError):
        return read_manifest(checkpoint_folder(run)).update
    return 0

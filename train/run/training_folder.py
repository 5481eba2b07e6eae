"""The folder of a run while it is trained: writable, the same for all processes, and locked against other trainings."""

import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from magicdistill_core.errors import ConfigError
from magicdistill_core.writable import check_output_folder

from ..distributed import beginning_together, from_all, is_main, world_size
from ..folder_lock import folder_lock

_TOKEN = ".shared-"
# A network folder may show a new file on other machines only after some seconds.
_VISIBLE_SECONDS = 5.0


@contextmanager
def training_folder(run: Path, work: str) -> Iterator[None]:
    """Hold the folder of a run inside the block; a collective call.

    Every process must enter before it looks at the folder. A network folder may hide files from a process that has
    looked for them too early. Folders that are created here and still empty at the end are removed again.

    Args:
        run: the run's folder.
        work: what this process does, such as `magicdistill train`; a refused process shows it.

    Raises:
        MagicDistillError: on every process, if the folder cannot be written, another training holds it, or not all
            processes see the same folder.
    """
    with ExitStack() as held:
        with beginning_together():
            if is_main():
                held.enter_context(folder_lock(run, work))
        _check_shared(run)
        yield


def _check_shared(run: Path) -> None:
    """Check that all processes see the folder of the main process and can write into it; a collective call."""
    if world_size() == 1:
        return
    here = f"{run.absolute()} of machine {platform.node()}"
    name, main = from_all((f"{_TOKEN}{uuid.uuid4().hex}", here))[0]
    token = run / name
    try:
        with beginning_together():
            if is_main():
                token.touch()
        with beginning_together():
            if not _appears(token):
                raise ConfigError(
                    f"{here} is not the folder of the main process, which is {main}: a file of the main process does "
                    f"not appear there. Every process writes its part of a checkpoint into one folder. Choose a folder "
                    f"that all machines share, by its complete path (run=/FOLDER)."
                )
            check_output_folder(run)
    finally:
        # Reached together, because all processes fail together.
        if is_main():
            token.unlink(missing_ok=True)


def _appears(path: Path) -> bool:
    end = time.monotonic() + _VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True

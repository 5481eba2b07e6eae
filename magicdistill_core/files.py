"""Files: written so that a killed process leaves either the old or the complete new one, and mapped into memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends without error, what was written there becomes `path`.

    The bytes are on disk before the name appears. On an error the temporary file is removed and `path` is untouched.
    Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors leaves its files to their owner alone, whatever the umask says
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Around PyTorch's mapping of a file.

    Raises:
        CheckpointError: if memory, or what the system lets a process reserve of it, does not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not all(part in str(error) for part in ("unable to mmap", "Cannot allocate memory")):
            raise
        raise CheckpointError(
            f"{path.name} has {path.stat().st_size / 1e9:,.1f} GB, more than this machine lets a program map into "
            f"memory now ({error}). The file may well be sound. End other programs, add swap, let Linux promise more "
            f"memory than there is (sysctl vm.overcommit_memory=1), or use a smaller file of the model (int8)."
        ) from error

"""Atomic writing of files, and a clear error when a file does not fit into memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write `path` atomically: the block writes a temporary file, which is renamed to `path` at the end.

    The temporary file is in the folder of `path`, and its bytes are on disk before the rename. If the block raises, the
    temporary file is removed and `path` stays unchanged. If the process is killed, `path` is either the old file or the
    complete new one.

    Args:
        path: the file to write; missing folders are created.

    Yields:
        The path of the empty temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors ignores the umask and makes its files private
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically (`atomic_file`).

    Args:
        path: the file to write.
        text: its complete contents.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Explain the error of PyTorch when a file cannot be mapped into memory inside the block.

    Args:
        path: the file that the block maps.

    Raises:
        CheckpointError: if memory is too small, or the system does not let the process reserve enough of it.
    """
    try:
        yield
    except RuntimeError as error:
        if not all(part in str(error) for part in ("unable to mmap", "Cannot allocate memory")):
            raise
        raise CheckpointError(
            f"{path.name} has {path.stat().st_size / 1e9:,.1f} GB, more than this machine lets a program map into "
            f"memory now. The file itself may be intact. End other programs, add swap, allow Linux to "
            f"overcommit memory (sysctl vm.overcommit_memory=1), or use a smaller file of the model (int8)."
        ) from error

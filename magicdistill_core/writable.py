"""Checks that an output can be written, made before anything is loaded or computed for it."""

import os
import tempfile
from pathlib import Path

from .errors import OutputError

# A full disk still creates an empty file.
_PROBE_BYTES = 4096


def check_output_folder(folder: str | Path) -> None:
    """Check that files can be written into a folder. It need not exist, and is not created.

    Args:
        folder: the folder of the output.

    Raises:
        OutputError: if the path is no folder, the folder cannot be created, or no file can be written into it.
    """
    folder = Path(folder).absolute()
    try:
        existing = _existing(folder)
        if not existing.is_dir():
            raise OutputError(
                f"Nothing can be written into {folder}: {existing} is a file, expected a folder. Choose another folder."
            )
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"Nothing can be written into {folder}: {_reason(error)}. Make the folder writable, free disk space, or "
            f"choose another folder."
        ) from error


def check_output_file(file: str | Path) -> None:
    """Check that a file can be written, or replaced. It is not created or changed.

    Args:
        file: the path of the output.

    Raises:
        OutputError: if the path is a folder, or files cannot be written into its folder (`check_output_folder`).
    """
    file = Path(file)
    check_output_folder(file.parent)
    try:
        _existing(file.absolute())
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {_reason(error)}. Choose another name.") from error
    if file.is_dir():
        raise OutputError(f"{file} is a folder. Expected the name of the file to write.")


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists. A broken link exists, because nothing can be created there.

    Raises:
        OSError: if the path cannot be looked up, for example because a name is too long.
    """
    for candidate in (path, *path.parents):
        try:
            candidate.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return candidate.resolve(strict=True)
    return Path(path.anchor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

"""Identify a model file: by size and time of change at once, and by its sha256, computed in the background.

The sha256 of a 26 GB file takes half a minute. Meanwhile the model is loaded and sampled.
"""

import logging
import os
import threading
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..magicdistill_core.hashes import file_sha256

LOGGER = logging.getLogger(__name__)


def file_stamp(folder: str, name: str | None) -> tuple[int, int]:
    """Return the size in bytes and the time of change in nanoseconds of a model file; (0, 0) if there is no such file.

    A loader returns this as its fingerprint, so ComfyUI runs it again when the file changes.

    Args:
        folder: ComfyUI's name of the folder, such as `loras`.
        name: the file's name in the folder. None if it comes from another node: ComfyUI calls this before the name is
            known, and such a loader runs again only when the name changes.
    """
    path = folder_paths.get_full_path(folder, name) if name is not None else None
    if path is None:
        return (0, 0)
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns)


class BackgroundHash:
    """The sha256 of a file, computed in a thread that starts at once.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest: str | None = None
        # A daemon thread does not delay the end of ComfyUI.
        self._thread = threading.Thread(target=self._compute, name=f"sha256 of {path.name}", daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        try:
            self._digest = file_sha256(self._path)
        except OSError as error:
            LOGGER.warning(
                "MagicDistillation: cannot compute the sha256 of %s, the file can no longer be read: %s",
                self._path,
                error,
            )

    def wait(self) -> str | None:
        """Wait for the sha256 and return it in hexadecimal; None if the file could not be read."""
        self._thread.join()
        return self._digest


def background_hash(path: Path) -> BackgroundHash:
    """Start to hash a file; return the hash that was already started if the file has not changed since.

    Args:
        path: the file.

    Raises:
        OSError: if the file does not exist.
    """
    status = os.stat(path)
    return _started(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _started(path: Path, size: int, modified_ns: int) -> BackgroundHash:
    return BackgroundHash(path)

"""What tells a model file from another one: its size and time at once, its sha256 in the background.

The sha256 of a 26 GB file takes half a minute, which loading and sampling hide.
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
    """Size and time of a model file: a node that loads it runs again after it was exported anew.

    A name that comes from another node is not known when ComfyUI asks (None): such a node runs again by its name alone.
    """
    path = folder_paths.get_full_path(folder, name) if name is not None else None
    if path is None:
        return (0, 0)
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns)


class BackgroundHash:
    """The sha256 of a file, computed in a thread of its own that starts at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest: str | None = None
        # A daemon: whoever stops ComfyUI does not wait for it.
        self._thread = threading.Thread(target=self._compute, name=f"sha256 of {path.name}", daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        try:
            self._digest = file_sha256(self._path)
        except OSError as error:
            LOGGER.warning("MagicDistillation: no sha256 of %s, which cannot be read any more: %s", self._path, error)

    def wait(self) -> str | None:
        """The sha256 in hexadecimal, once it is there; None if the file could not be read."""
        self._thread.join()
        return self._digest


def background_hash(path: Path) -> BackgroundHash:
    """The hash of a file as it is now: begun now, or before if the file has not changed since.

    Raises:
        OSError: if the file is not there.
    """
    status = os.stat(path)
    return _begun(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _begun(path: Path, size: int, modified_ns: int) -> BackgroundHash:
    return BackgroundHash(path)

"""Identity of source videos by their contents: names repeat between folders, and files are renamed and copied."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from .dataset_index import Content

# Larger files are identified by their size and this many evenly spaced parts. Reading terabytes again to continue a
# preparation would take hours.
_PARTS = 16
_PART_BYTES = 1024**2


class Source(NamedTuple):
    """A source video as the dataset knows it.

    Attributes:
        name: the name that its samples begin with.
        content: its contents.
    """

    name: str
    content: Content


def content_of(path: Path, size: int | None = None) -> Content:
    """Identify the contents of a file, with at most 16 MiB of reading.

    Args:
        path: the file.
        size: take only the first `size` bytes of the file; None takes all.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2) if size is None else size
        digest = hashlib.sha256()
        if size <= _PARTS * _PART_BYTES:
            starts, length = [0], size
        else:
            starts, length = [part * (size - _PART_BYTES) // (_PARTS - 1) for part in range(_PARTS)], _PART_BYTES
        for start in starts:
            file.seek(start)
            digest.update(file.read(length))
    return Content(bytes=size, sha256=digest.hexdigest())

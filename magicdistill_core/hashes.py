"""Hashes by which recipes and datasets name the files that they were made from."""

import hashlib
from pathlib import Path

from .diffusers_folder import weight_files
from .errors import CheckpointError


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes: how recipes name a teacher or a base."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: str | Path) -> str:
    """`file_sha256` of a file; of a diffusers folder, the sha256 over its files' names and hashes.

    These are the files of weights that are read (see `weight_files`) and the JSON files beside them, so that a
    pipeline's folder has the hash of its transformer's.

    Raises:
        CheckpointError: if there is nothing at the path, or the folder holds no weights.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        return file_sha256(path)
    files = weight_files(path)
    digest = hashlib.sha256()
    for file in sorted({*files, *files[0].parent.glob("*.json")}):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()

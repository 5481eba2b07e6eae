"""Hashes of model files and tensors. Recipes and datasets store them to identify the files that they were made from."""

import hashlib
from pathlib import Path

from torch import Tensor

from .diffusers_folder import weight_files
from .errors import CheckpointError


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal. Recipes identify a teacher or a base by it.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: str | Path) -> str:
    """Return the sha256 of a model file or of a diffusers folder in hexadecimal.

    The hash of a file is `file_sha256`. The hash of a folder covers the names and hashes of the weight files that are
    read (see `weight_files`) and of the JSON files next to them. A pipeline folder therefore has the same hash as its
    `transformer` folder.

    Args:
        path: the file or folder.

    Raises:
        CheckpointError: if the path does not exist, or the folder holds no weights.
    """
    path = Path(path)
    files = hashed_files(path)
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def hashed_files(path: str | Path) -> list[Path]:
    """Return the files that `weights_sha256` covers, in order; arguments and errors as there."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        return [path]
    files = weight_files(path)
    return sorted({*files, *files[0].parent.glob("*.json")})


def tensors_sha256(*tensors: Tensor) -> str:
    """Return the sha256 of the numbers of tensors, as float32."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Safetensors files: their tensors and metadata read, or looked at without reading, and written whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .files import atomic_file, enough_memory
from .streamed import DTYPE_NAMES
from .wrappers import is_pickle_name

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Dtype (in safetensors' spelling, such as BF16) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    def without_data(self) -> Tensor:
        """Such a tensor on the device `meta`; float32 if PyTorch has no such dtype."""
        return torch.empty(self.shape, dtype=_DTYPES.get(self.dtype, torch.float32), device="meta")


def read_metadata(path: str | Path) -> dict[str, str]:
    """The safetensors metadata of a file, without reading its tensors.

    Raises:
        CheckpointError: if the file is absent, a pickle, truncated or otherwise no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file. Check the path.")
    try:
        with _opened_to_look(path) as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The names, dtypes and shapes of a file's tensors, without reading them. Errors as in `read_metadata`."""
    path = Path(path)
    read_metadata(path)
    with _opened_to_look(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Args:
        device: `meta` for tensors without data, of which nothing is read.

    Raises:
        CheckpointError: as `read_metadata`, or if memory does not suffice.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if device == "meta":
        return {key: info.without_data() for key, info in read_header(path).items()}, metadata
    try:
        with enough_memory(path), safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def explained_writing(path: str | Path) -> Iterator[None]:
    """Within, an error of writing `path` is said in a paragraph.

    Raises:
        CheckpointError: if the disk is full, read-only or otherwise refuses.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}). Make room on that disk, or write to another folder."
        ) from error


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it appears under its name only when it is complete and on disk.

    Raises:
        CheckpointError: if it cannot be written.
    """
    with explained_writing(path), atomic_file(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)


def _opened_to_look(path: Path) -> Any:
    """A safetensors file without its tensors.

    Mapped to be read only, as NumPy has it: PyTorch's way reserves memory for the whole file, which may not be there.
    """
    return safe_open(path, framework="np")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    with open(path, "rb") as file:
        head = file.read(4)
    # Judged only now: a safetensors file begins with a length, which may look like the start of a bare pickle.
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if is_pickle_name(path) or head == b"PK\x03\x04" or bare:
        return CheckpointError(
            f"{path.name} is a pickle, which can run any code when it is opened. Expected a .safetensors file: "
            f"convert it once in an environment that you trust, and use the result. (A whole transformer is read from "
            f".pt and .pth too, if the name says so and nothing but tensors is in it.)"
        )
    if path.suffix.lower() == ".gguf":
        return CheckpointError(
            f"{path.name} is a GGUF file, whose weights are quantised. Use the bf16, fp16 or fp32 release of the same "
            f"model here; ComfyUI's GGUF loaders run such files."
        )
    return CheckpointError(
        f"{path.name} ({path.stat().st_size:,} bytes) cannot be read as safetensors ({error}). It is truncated or "
        f"damaged: copy or download it again."
    )

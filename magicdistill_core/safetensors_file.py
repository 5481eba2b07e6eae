"""Read safetensors files (all tensors, or only the header) and write them atomically."""

import json
import re
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
        """Return a tensor of this dtype and shape on the device `meta`; float32 if PyTorch has no such dtype."""
        return torch.empty(self.shape, dtype=_DTYPES.get(self.dtype, torch.float32), device="meta")


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the safetensors metadata (text by name) of a file without its tensors; empty if the file has none.

    Args:
        path: the file.

    Raises:
        CheckpointError: if the file does not exist, is a pickle, is truncated, or is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file. Check the path.")
    try:
        with _open_header(path) as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path) from error


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read the dtypes and shapes of a file's tensors, by tensor name, without their data.

    Args:
        path: the file.

    Raises:
        CheckpointError: see `read_metadata`.
    """
    path = Path(path)
    read_metadata(path)
    with _open_header(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Args:
        path: the file.
        device: the device of the tensors, as PyTorch spells it. For `meta` only the header is read, and the tensors
            have no data.

    Returns:
        The tensors by name, and the metadata (text by name).

    Raises:
        CheckpointError: see `read_metadata`; also if memory is too small.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if device == "meta":
        return {key: info.without_data() for key, info in read_header(path).items()}, metadata
    try:
        with enough_memory(path), safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path) from error


@contextmanager
def explained_writing(path: str | Path) -> Iterator[None]:
    """Turn errors while writing `path` inside the block into a `CheckpointError` with advice.

    Args:
        path: the file that the block writes, for the message.

    Raises:
        CheckpointError: if the file cannot be written, for example to a full or read-only disk.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({_reason(error)}). Make room on that disk, or write to another folder."
        ) from error


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically (`atomic_file`).

    Args:
        path: the file to write; an existing file is replaced.
        tensors: the tensors by name, on any device.
        metadata: text entries of the file's header.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    with explained_writing(path), atomic_file(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)


def _open_header(path: Path) -> Any:
    """Open a safetensors file to read its header only.

    The framework is NumPy, because it maps the file read-only. PyTorch's mapping reserves memory for the complete file,
    which may be more than the machine has.
    """
    return safe_open(path, framework="np")


def _unreadable(path: Path) -> CheckpointError:
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        return CheckpointError(
            f"{path} cannot be opened ({_reason(error)}). Check the disk and the file's permissions."
        )
    # This check runs only after reading failed: the length at the start of a valid safetensors file can look like the
    # first bytes of a pickle.
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if is_pickle_name(path) or head == b"PK\x03\x04" or bare:
        return CheckpointError(
            f"{path.name} is a pickle, which can run any code when it is opened. Expected a .safetensors file. "
            f"Convert the pickle once in an environment that you trust, and use the result. (A complete transformer "
            f"can also be a pickle, if its name ends in .pt or .pth and it holds only tensors.)"
        )
    if path.suffix.lower() == ".gguf":
        return CheckpointError(
            f"{path.name} is a GGUF file, so its weights are quantised. Use the bf16, fp16 or fp32 release of the same "
            f"model here. To run the GGUF file itself, use ComfyUI's GGUF loaders."
        )
    return CheckpointError(
        f"{path.name} cannot be read as safetensors: {_damage(path)}. It is truncated or damaged. Copy or download it "
        f"again."
    )


def _damage(path: Path) -> str:
    """Describe what is wrong with a file that cannot be read as safetensors, from its size and its header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            return f"its {size:,} bytes contain no complete header"
        text = file.read(length)
    try:
        header = json.loads(text)
        end = max((info["data_offsets"][1] for key, info in header.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return f"the header of its {size:,} bytes is not a table of tensors"
    expected = 8 + length + end
    if size != expected:
        return f"it has {size:,} bytes, but its header describes {expected:,}"
    return f"its {size:,} bytes do not agree with its header"


def _reason(error: Exception) -> str:
    """Return the system's reason for a failed write, such as `No space left on device`."""
    found = re.search(r"([\w ]+) \(os error \d+\)", str(error))
    return found[1].strip() if found else getattr(error, "strerror", None) or type(error).__name__

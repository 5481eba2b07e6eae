"""Write a safetensors file tensor by tensor, with at most one tensor in memory at a time."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import atomic_file

# The order of tensors in a file, as in the safetensors library: the widest dtype first, which aligns every tensor.
DTYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = list(DTYPE_NAMES)
_ALIGNMENT = 8


@dataclass(frozen=True)
class Space:
    """Dtype and shape of a tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Space":
        """Return the dtype and shape of an existing tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """The size of the tensor in the file, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StreamedFile:
    """An open safetensors file with a reserved place for every tensor; see `streamed_file`.

    Args:
        file: the empty file, open for writing.
        spaces: dtype and shape of every tensor, by name.
        metadata: text entries of the file's header.
    """

    def __init__(self, file: BinaryIO, spaces: Mapping[str, Space], metadata: Mapping[str, str]) -> None:
        self._file = file
        self._spaces = dict(spaces)
        self._missing = set(spaces)
        order = sorted(spaces, key=lambda name: (_ORDER.index(spaces[name].dtype), name))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._offsets, end = {}, 0
        for name in order:
            space = spaces[name]
            self._offsets[name], end = end, end + space.bytes
            header[name] = {
                "dtype": DTYPE_NAMES[space.dtype],
                "shape": list(space.shape),
                "data_offsets": [self._offsets[name], end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        file.write(len(text).to_bytes(8, "little") + text)
        self._start = file.tell()
        file.truncate(self._start + end)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to its place. Each tensor is written once.

        Args:
            name: a name in `spaces`.
            tensor: its value, on any device, with the dtype and shape in `spaces`.
        """
        assert Space.of(tensor) == self._spaces[name], name
        self._missing.remove(name)
        if tensor.numel():
            self._file.seek(self._start + self._offsets[name])
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(self._file)

    def finish(self) -> None:
        """Check with an assertion that every announced tensor was written."""
        assert not self._missing, f"not written: {sorted(self._missing)}"


@contextmanager
def streamed_file(path: str | Path, spaces: Mapping[str, Space], metadata: Mapping[str, str]) -> Iterator[StreamedFile]:
    """Open a safetensors file for writing tensor by tensor, in any order.

    The file appears under its name at the end of the block, when all tensors were written (`atomic_file`).

    Args:
        path: the file to write; an existing file is replaced.
        spaces: dtype and shape of every tensor, by name.
        metadata: text entries of the file's header.

    Yields:
        The open file; call its `write` once per tensor.

    Raises:
        CheckpointError: if the disk has not enough room for the file.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        needed, free = sum(space.bytes for space in spaces.values()), shutil.disk_usage(temporary.parent).free
        if needed > free:
            raise CheckpointError(
                f"{Path(path).name} needs {needed / 1e9:,.1f} GB, but {Path(path).parent} has only "
                f"{free / 1e9:,.1f} GB left. Free some space there, or write the file to another disk."
            )
        streamed = StreamedFile(file, spaces, metadata)
        yield streamed
        streamed.finish()

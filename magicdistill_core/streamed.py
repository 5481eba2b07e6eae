"""Writing a safetensors file tensor by tensor, so that no more than one of them is in memory at a time."""

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

# In the order in which the safetensors library lays tensors out: the widest first, so that every one is aligned to its
# own dtype.
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
    """Dtype and shape of a tensor that is going to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Space":
        """What a tensor takes."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StreamedFile:
    """An open safetensors file of which every tensor has its place; see `streamed_file`."""

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
        """Put a tensor, of the dtype and shape announced, into its place."""
        assert Space.of(tensor) == self._spaces[name], name
        self._missing.remove(name)
        if tensor.numel():
            self._file.seek(self._start + self._offsets[name])
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(self._file)

    def finish(self) -> None:
        """Make sure that nothing announced is lacking."""
        assert not self._missing, f"not written: {sorted(self._missing)}"


@contextmanager
def streamed_file(path: str | Path, spaces: Mapping[str, Space], metadata: Mapping[str, str]) -> Iterator[StreamedFile]:
    """A safetensors file that appears under its name when all of its tensors, in any order, have been written.

    Args:
        spaces: every tensor that is to be in it.
        metadata: text kept in its header.

    Raises:
        CheckpointError: if the disk has no room for it.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        needed, free = sum(space.bytes for space in spaces.values()), shutil.disk_usage(temporary.parent).free
        if needed > free:
            raise CheckpointError(
                f"{Path(path).name} needs {needed / 1e9:,.1f} GB, and {Path(path).parent} has {free / 1e9:,.1f} GB "
                f"left. Make room there, or write it to another disk."
            )
        streamed = StreamedFile(file, spaces, metadata)
        yield streamed
        streamed.finish()

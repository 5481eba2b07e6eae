"""Peak memory of code, measured by running it on tensors without data (PyTorch's `meta` device)."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

META = torch.device("meta")


class BytesHeld(TorchDispatchMode):
    """A count of the bytes of tensors on `meta` that are allocated and freed inside a `with` block.

    On a GPU the same code allocates the same storages. The workspaces of kernels and the allocator's rounding are not
    counted.

    Attributes:
        peak: the largest number of bytes held at the same time.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Start with no bytes.

        Args:
            known: tensors that exist already; they are not counted.
        """
        super().__init__()
        self.peak = 0
        self._now = 0
        # Weak references by address; their callbacks report when a storage is freed.
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._add(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the new storages among its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._storages:
            return
        size = storage.nbytes() if counts else 0

        def freed(_: object) -> None:
            del self._storages[address]
            self._now -= size

        self._storages[address] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Use cuDNN attention for tensors on `meta` inside a `with` block, as a GPU does for long clips.

    By default PyTorch uses the explicit matrix products on `meta`. Their memory grows with the square of the number of
    tokens.
    """
    usual = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
        if not query.is_meta:
            return usual(query, key, value, *args, **settings)
        backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        result: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, backward)[0]
        return result

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual

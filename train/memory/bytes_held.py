"""How much memory code holds at most, found by running it on tensors without data (PyTorch's `meta` device)."""

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
    """Counts, while it is entered, the storages of tensors on `meta` that come and go.

    On a GPU the same code holds the same storages, but for what kernels need for themselves and what the allocator
    rounds up.

    Attributes:
        peak: the most bytes at a time.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """
        Args:
            known: tensors that were there before, and do not count.
        """
        super().__init__()
        self.peak = 0
        self._now = 0
        # Storages by address, with what tells when they go.
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._add(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what is new in what it gives."""
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

        def gone(_: object) -> None:
            del self._storages[address]
            self._now -= size

        self._storages[address] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within, PyTorch's attention on `meta` is cuDNN's, which long clips get on a GPU.

    By itself it would be the one that multiplies matrices out there, whose memory grows with the tokens' square.
    """
    usual = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
        if not query.is_meta:
            return usual(query, key, value, *args, **settings)
        kept = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        result: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, kept)[0]
        return result

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual

"""The work of code, counted by running it on tensors: multiplications, additions, and bytes moved."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class WorkCount:
    """Amounts of work. They can be added, and multiplied by a number.

    Attributes:
        products: multiplications and additions in matrix products and convolutions.
        attention: multiplications and additions in fused attention.
        attention_backward: the same in its backward pass.
        moved: bytes that all other operations read and write.
        weights: bytes of weights that operations read; ZeRO stage 3 gathers them for each read.
        exchanged: bytes of queries, keys, values and results of fused attention, or of their gradients. Processes that
            share a sample exchange them.
        operations: number of operations.
    """

    products: float = 0
    attention: float = 0
    attention_backward: float = 0
    moved: float = 0
    weights: float = 0
    exchanged: float = 0
    operations: float = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __mul__(self, times: float) -> Self:
        return type(self)(*(times * getattr(self, each.name) for each in fields(self)))


class Work(TorchDispatchMode):
    """A count of the work inside a `with` block, also of tensors without data."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        """Start with no work.

        Args:
            weights: the weights whose use counts as `WorkCount.weights`.
        """
        super().__init__()
        # By storage: a transposed weight is a view.
        self._weights = {_storage(tensor): tensor.nbytes for tensor in weights}
        self._flops = {"products": 0, "attention": 0, "attention_backward": 0}
        self._moved = self._read = self._exchanged = self._operations = 0

    @property
    def count(self) -> WorkCount:
        """The work so far."""
        return WorkCount(
            **self._flops, moved=self._moved, weights=self._read, exchanged=self._exchanged, operations=self._operations
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its work."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._operations += 1
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        formula = flop_registry.get(func._overloadpacket)
        moved = 0
        if formula is not None:
            kind = _kind(func)
            self._flops[kind] += formula(*args, **kwargs, out_val=result)
            if kind != "products":
                # Query, key and value; the result is as large as the query. The backward has a gradient of each.
                query, key, value = read[:3] if kind == "attention" else read[1:4]
                self._exchanged += 2 * query.nbytes + key.nbytes + value.nbytes
        else:
            moved = _moved(func, read, [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
            self._moved += moved
        if formula is not None or moved:
            self._read += sum(self._weights.get(_storage(tensor), 0) for tensor in read)
        return result


def _kind(func: Any) -> str:
    name = func._overloadpacket.__name__
    if "dot_product" not in name:
        return "products"
    return "attention_backward" if "backward" in name else "attention"


def _moved(func: Any, read: list[Tensor], made: list[Tensor]) -> int:
    """Return the bytes that an operation reads and writes: none if it only makes views or reserves memory."""
    if func._schema.is_mutable:
        return sum(tensor.numel() * tensor.element_size() for tensor in read)
    seen = {_storage(tensor) for tensor in read}
    new = [tensor for tensor in made if _storage(tensor) not in seen]
    if not new or "empty" in func._overloadpacket.__name__:
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in (*read, *new))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata

"""The training state of an engine, saved so that any number of processes can load it.

ZeRO partitions each parameter's fp32 weights and optimizer moments among the processes. A *partition* is the part of
one parameter that one process holds: a range of the flattened parameter. Each process saves its own partitions, named
by the parameter and by the position in the flattened parameter. A loading process reads the positions that it needs.
The saved partitions need not match the loading ones. A run can therefore resume with another number of processes or at
another ZeRO stage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from magicdistill_core.errors import CheckpointError

from ..distributed import is_main, rank

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Partition:
    """The part of one parameter's state that this process holds.

    Attributes:
        name: the parameter's name.
        start: index of the partition's first element in the flattened parameter.
        size: number of elements of the full parameter.
        tensors: views `[n]` of the partition in the memory of the optimizer or average, by kind (fp32 weights,
            moments). Loading writes into them.
        written: whether this process saves the partition; False if another process saves the same values.
    """

    name: str
    start: int
    size: int
    tensors: dict[str, Tensor]
    written: bool = True


class SavedState(Protocol):
    """An object whose state is saved in checkpoints, such as an engine or an average of weights.

    Every process holds its own partitions. Together they contain the full state.
    """

    def partitions(self) -> list[Partition]:
        """Return this process's partitions of the state."""
        ...

    def counter(self) -> int:
        """Return the number of updates made; the same on every process."""
        ...

    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """Load a saved state; a collective call.

        Args:
            counter: the number of updates that the saved state had made.
            read: fills partitions with the saved values.
        """
        ...


@dataclass(frozen=True)
class _Part:
    """A part of a parameter and its place in a flat fp32 tensor of the optimizer.

    Attributes:
        name: the parameter's name.
        parameter: the parameter of the network.
        start: index of the part's first element in the flattened parameter.
        size: number of elements of the full parameter.
        flat: the optimizer's fp32 tensor that contains the part.
        offset: index of the part's first element in `flat`.
        length: number of elements of the part.
    """

    name: str
    parameter: nn.Parameter
    start: int
    size: int
    flat: Tensor
    offset: int
    length: int

    def slice(self, flat: Tensor) -> Tensor:
        return flat.view(-1).narrow(0, self.offset, self.length)


class EngineState:
    """The fp32 weights and the AdamW moments of a DeepSpeed engine, at any ZeRO stage."""

    def __init__(self, engine: Any) -> None:
        """Wrap an engine.

        Args:
            engine: a DeepSpeed engine, or an object with its attributes `module`, `optimizer` and
                `zero_optimization_stage`.
        """
        self.engine = engine
        wrapped = engine.optimizer
        # Without ZeRO in fp32 DeepSpeed does not wrap the optimizer.
        self._wrapper = None if isinstance(wrapped, torch.optim.Optimizer) else wrapped
        self._adam: torch.optim.Optimizer = wrapped if self._wrapper is None else wrapped.optimizer

    def partitions(self) -> list[Partition]:
        """Return this process's partitions of the weights and the moments.

        The tensors are views of the optimizer's own memory. Moments are missing before the first step.
        """
        replicated = self.engine.zero_optimization_stage() == 0
        partitions = []
        for part in self._parts():
            state = self._adam.state.get(part.flat, {})
            tensors = {MASTER: part.slice(part.flat.data)}
            tensors |= {kind: part.slice(state[kind]) for kind in MOMENTS if kind in state}
            partitions.append(Partition(part.name, part.start, part.size, tensors, is_main() or not replicated))
        return partitions

    def counter(self) -> int:
        """Return the number of steps that the optimizer has made; 0 before the first."""
        for part in self._parts():
            if "step" in (state := self._adam.state.get(part.flat, {})):
                return int(state["step"])
        return 0

    @torch.no_grad()
    def below(self, eps: float, beta: float) -> tuple[float, float]:
        """Count the elements of this process's partitions whose gradients are below Adam's epsilon.

        An element is below if `sqrt(v) < eps` with Adam's bias-corrected second moment `v = exp_avg_sq / (1 - beta^t)`
        after t steps. Elements that never had a gradient are among them.

        Args:
            eps: Adam's epsilon.
            beta: decay of the average of the squared gradient, the second of Adam's betas.

        Returns:
            The number of elements below, and the number of all elements; both 0 before the first step.
        """
        limit = eps**2 * (1 - beta ** self.counter())
        moments = [p.tensors["exp_avg_sq"] for p in self.partitions() if p.written and "exp_avg_sq" in p.tensors]
        counts = [(moment < limit).sum() for moment in moments]
        return float(torch.stack(counts).sum()) if counts else 0.0, float(sum(moment.numel() for moment in moments))

    @torch.no_grad()
    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """Load saved weights and moments, and copy the fp32 weights back into the network; a collective call.

        Args:
            counter: the number of steps that the saved optimizer had made; 0 removes the moments.
            read: fills partitions with the saved values.
        """
        for part in self._parts():
            if not counter:
                self._adam.state.pop(part.flat, None)
                continue
            state = self._adam.state.setdefault(part.flat, {})
            state["step"] = self._step(counter, part.flat)
            for kind in MOMENTS:
                # Existing moments are overwritten: DeepSpeed also refers to them, so new ones would need memory too.
                if kind not in state:
                    state[kind] = torch.zeros_like(part.flat.data)
        read(self.partitions())
        self.refresh_network()

    def _step(self, counter: int, flat: Tensor) -> Tensor:
        """Return Adam's step count as a tensor.

        A fused kernel reads it from the device of the weights, the other implementations read it from the CPU.
        """
        # ZeRO-3 empties the groups between two steps, so the group of `flat` is unknown. All groups are configured
        # alike.
        on_device = any(group["fused"] or group["capturable"] for group in self._adam.param_groups)
        return torch.tensor(float(counter), dtype=torch.float32, device=flat.device if on_device else "cpu")

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.engine.module.named_parameters()}

    def _parts(self) -> Iterator[_Part]:
        stage = self.engine.zero_optimization_stage()
        if self._wrapper is None:
            return self._full_parts(group["params"] for group in self._adam.param_groups)
        if stage == 0:
            return self._copied_parts()
        return self._stage_3_parts() if stage == 3 else self._flat_parts()

    def _full_parts(self, groups: Any) -> Iterator[_Part]:
        """Yield the parts without ZeRO in fp32: the optimizer holds the full parameters themselves."""
        names = self._names()
        for group in groups:
            for p in group:
                yield _Part(names[id(p)], p, 0, p.numel(), p, 0, p.numel())

    def _copied_parts(self) -> Iterator[_Part]:
        """Yield the parts without ZeRO in bf16: DeepSpeed keeps an fp32 copy of every parameter."""
        names, wrapper = self._names(), self._wrapper
        assert wrapper is not None
        for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for p, copy in zip(low, high, strict=True):
                yield _Part(names[id(p)], p, 0, p.numel(), copy, 0, p.numel())

    def _flat_parts(self) -> Iterator[_Part]:
        """Yield the parts of ZeRO-1 and 2.

        There is one flat fp32 tensor per parameter group, split among the processes at any element. DeepSpeed has a
        class of its own for ZeRO-1 with bf16 weights and fp32 gradients, with other names.
        """
        names, wrapper = self._names(), self._wrapper
        assert wrapper is not None
        if hasattr(wrapper, "bf16_groups"):
            groups, flats = wrapper.bf16_groups, wrapper.fp32_groups_flat_partition
        else:
            groups, flats = wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups
        for low, flat in zip(groups, flats, strict=True):
            for p in low:
                if p._hp_mapping is not None:
                    source, target = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                    yield _Part(names[id(p)], p, source.start, p.numel(), flat, target.start, target.numel)

    def _stage_3_parts(self) -> Iterator[_Part]:
        """Yield the parts of ZeRO-3.

        Every parameter is split into partitions of equal length; the last one may be padded.
        """
        names, wrapper = self._names(), self._wrapper
        assert wrapper is not None
        for group in wrapper.fp16_groups:
            for p in group:
                index, offset, length = wrapper.grad_position[wrapper.get_param_id(p)]
                start = rank() * length
                length = min(length, p.ds_numel - start)
                if length > 0:
                    flat = wrapper.fp32_partitioned_groups_flat[index]
                    yield _Part(names[id(p)], p, start, p.ds_numel, flat, offset, length)

    def refresh_network(self) -> None:
        """Copy the modified fp32 weights back into the network, whose weights may be bf16."""
        stage = self.engine.zero_optimization_stage()
        if self._wrapper is not None and stage in (1, 2):
            self._wrapper.update_lp_params()
        elif self._wrapper is not None:
            for part in self._parts():
                # Under ZeRO-3 the parameter itself is empty; `ds_tensor` holds this process's partition of it.
                target = getattr(part.parameter, "ds_tensor", part.parameter)
                target.data.view(-1)[: part.length].copy_(part.slice(part.flat.data))


class Overlaps:
    """An index of the saved parts of a state, from which partitions are filled.

    A partition is copied from all saved parts that overlap it. The parts are those of a checkpoint, whose processes may
    have split the parameters at other positions.
    """

    def __init__(self) -> None:
        self._saved: dict[tuple[str, str], list[tuple[int, int, Callable[[int, int], Tensor]]]] = {}

    def add(self, name: str, kind: str, start: int, length: int, read: Callable[[int, int], Tensor]) -> None:
        """Register a saved part.

        Args:
            name: the parameter's name.
            kind: the kind of tensor (fp32 weights, a moment, an average).
            start: index of the part's first element in the flattened parameter.
            length: number of elements of the part.
            read: function `(a, b) -> tensor`: returns the part's elements from `a` up to, but not including, `b`.
        """
        self._saved.setdefault((name, kind), []).append((start, length, read))

    def fill(self, partitions: list[Partition]) -> None:
        """Copy the saved values into the tensors of every partition.

        Args:
            partitions: the partitions of this process.

        Raises:
            CheckpointError: if a parameter was not saved completely, or was saved with another size. The message names
                the parameter.
        """
        for partition in partitions:
            for kind, target in partition.tensors.items():
                self._fill(partition, kind, target)

    def _fill(self, partition: Partition, kind: str, target: Tensor) -> None:
        first, last = partition.start, partition.start + target.numel()
        saved = self._saved.get((partition.name, kind), [])
        saved_size = max((start + length for start, length, _ in saved), default=0)
        filled = 0
        for start, length, read in saved:
            low, high = max(first, start), min(last, start + length)
            if low < high:
                target[low - first : high - first].copy_(read(low - start, high - start))
                filled += high - low
        if filled != target.numel() or saved_size != partition.size:
            raise CheckpointError(
                f"The checkpoint holds {saved_size} elements of {partition.name} ({kind}); this run needs "
                f"{partition.size}. The checkpoint was saved with another network, branch or method. Restore the "
                "configuration of that training."
            )

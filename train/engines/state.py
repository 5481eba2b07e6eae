"""What an engine has learned, cut as DeepSpeed cuts it, so that any number of processes can take it up again.

ZeRO gives every process a part of each parameter's fp32 weights and of its optimizer's moments. A process writes the
parts that it holds, named by parameter and by place in the flattened parameter; one that loads asks for the places that
it needs. Neither side has to know how the other was cut, so a run goes on with other processes or another stage.
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
        name: of the parameter.
        start: where the part begins in the flattened parameter.
        size: elements of the whole parameter.
        tensors: live views `[n]` of the part by kind (fp32 weights, moments): what is loaded is written into them.
        written: whether this process writes it; False where others hold the same.
    """

    name: str
    start: int
    size: int
    tensors: dict[str, Tensor]
    written: bool = True


class SavedState(Protocol):
    """Something whose state a checkpoint keeps: an engine, an average of weights, ...

    Every process has its own share; all of them together make up the whole.
    """

    def partitions(self) -> list[Partition]:
        """This process's part of the state."""
        ...

    def counter(self) -> int:
        """How many updates the state has seen; the same on every process."""
        ...

    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """Take up a state of `counter` updates: `read` fills partitions. A collective call."""
        ...


@dataclass(frozen=True)
class _Part:
    """A part of a parameter: which elements of it lie where in a flat fp32 tensor of the optimizer."""

    name: str
    parameter: nn.Parameter
    start: int
    size: int
    flat: Tensor
    offset: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.view(-1).narrow(0, self.offset, self.length)


class EngineState:
    """The fp32 weights and the AdamW moments of a DeepSpeed engine, at any ZeRO stage."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        wrapped = engine.optimizer
        # Without ZeRO in fp32 DeepSpeed leaves the optimizer as it is.
        self._wrapper = None if isinstance(wrapped, torch.optim.Optimizer) else wrapped
        self._adam: torch.optim.Optimizer = wrapped if self._wrapper is None else wrapped.optimizer

    def partitions(self) -> list[Partition]:
        """As `SavedState.partitions`; views of the optimizer's own memory."""
        replicated = self.engine.zero_optimization_stage() == 0
        partitions = []
        for part in self._parts():
            state = self._adam.state.get(part.flat, {})
            tensors = {MASTER: part.of(part.flat.data)}
            tensors |= {kind: part.of(state[kind]) for kind in MOMENTS if kind in state}
            partitions.append(Partition(part.name, part.start, part.size, tensors, is_main() or not replicated))
        return partitions

    def counter(self) -> int:
        """How many steps the optimizer has made."""
        for part in self._parts():
            if "step" in (state := self._adam.state.get(part.flat, {})):
                return int(state["step"])
        return 0

    @torch.no_grad()
    def restore(self, counter: int, read: Callable[[list[Partition]], None]) -> None:
        """As `SavedState.restore`; the network's own weights follow the fp32 ones."""
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
        """Adam's count of steps: a fused kernel reads it where the weights are, the other ones on the CPU."""
        # All groups are made alike; which one `flat` belongs to, ZeRO-3's empty groups do not tell between two steps.
        beside = any(group["fused"] or group["capturable"] for group in self._adam.param_groups)
        return torch.tensor(float(counter), dtype=torch.float32, device=flat.device if beside else "cpu")

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.engine.module.named_parameters()}

    def _parts(self) -> Iterator[_Part]:
        stage = self.engine.zero_optimization_stage()
        if self._wrapper is None:
            return self._whole_parts(group["params"] for group in self._adam.param_groups)
        if stage == 0:
            return self._copied_parts()
        return self._stage_3_parts() if stage == 3 else self._flat_parts()

    def _whole_parts(self, groups: Any) -> Iterator[_Part]:
        names = self._names()
        for group in groups:
            for p in group:
                yield _Part(names[id(p)], p, 0, p.numel(), p, 0, p.numel())

    def _copied_parts(self) -> Iterator[_Part]:
        """Without ZeRO in bf16: an fp32 copy of every parameter."""
        names, wrapper = self._names(), self._wrapper
        assert wrapper is not None
        for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for p, copy in zip(low, high, strict=True):
                yield _Part(names[id(p)], p, 0, p.numel(), copy, 0, p.numel())

    def _flat_parts(self) -> Iterator[_Part]:
        """ZeRO-1 and 2: one flat fp32 tensor for each parameter group, cut among the processes at any element."""
        names, wrapper = self._names(), self._wrapper
        assert wrapper is not None
        for low, flat in zip(wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups, strict=True):
            for p in low:
                if p._hp_mapping is not None:
                    inside, here = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                    yield _Part(names[id(p)], p, inside.start, p.numel(), flat, here.start, here.numel)

    def _stage_3_parts(self) -> Iterator[_Part]:
        """ZeRO-3: every parameter is cut into equal pieces, the last of which may be padded."""
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
        """Let the network's weights, which may be bf16, be the fp32 ones, which somebody has changed."""
        stage = self.engine.zero_optimization_stage()
        if self._wrapper is not None and stage in (1, 2):
            self._wrapper.update_lp_params()
        elif self._wrapper is not None:
            for part in self._parts():
                # ZeRO-3 keeps this process's piece of the parameter beside the empty parameter itself.
                target = getattr(part.parameter, "ds_tensor", part.parameter)
                target.data.view(-1)[: part.length].copy_(part.of(part.flat.data))


class Overlaps:
    """Where the parts of a saved state lie, and the copying of what a process asks for out of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[tuple[int, int, Callable[[int, int], Tensor]]]] = {}

    def add(self, name: str, kind: str, start: int, length: int, read: Callable[[int, int], Tensor]) -> None:
        """A saved part; `read(a, b)` gives its elements from a to b."""
        self._known.setdefault((name, kind), []).append((start, length, read))

    def fill(self, partitions: list[Partition]) -> None:
        """Write into every partition what was saved of it.

        Raises:
            CheckpointError: naming a parameter that was not saved, or not in this size.
        """
        for partition in partitions:
            for kind, target in partition.tensors.items():
                self._fill(partition, kind, target)

    def _fill(self, partition: Partition, kind: str, target: Tensor) -> None:
        first, last = partition.start, partition.start + target.numel()
        known = self._known.get((partition.name, kind), [])
        whole = max((start + length for start, length, _ in known), default=0)
        found = 0
        for start, length, read in known:
            low, high = max(first, start), min(last, start + length)
            if low < high:
                target[low - first : high - first].copy_(read(low - start, high - start))
                found += high - low
        if found != target.numel() or whole != partition.size:
            raise CheckpointError(
                f"The checkpoint holds {whole} elements of {partition.name} ({kind}), this run needs {partition.size}. "
                "It was saved with another network, branch or method: restore the configuration of that training."
            )

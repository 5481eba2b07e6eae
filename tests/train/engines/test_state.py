"""A state that was saved with some partitions is read with other partitions."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from magicdistill_core.errors import CheckpointError
from train.engines.state import EngineState, Overlaps, Partition


def saved(values: torch.Tensor, cuts: list[int]) -> Overlaps:
    """`values` in the partitions of several processes, split at `cuts`."""
    overlaps = Overlaps()
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        part = values[start:end]
        overlaps.add("weight", "master", start, len(part), lambda a, b, part=part: part[a:b])
    return overlaps


@pytest.mark.parametrize("before", [[], [5], [1, 2, 9]])
@pytest.mark.parametrize("after", [[], [5], [3, 4]])
def test_every_partition_is_read_with_every_other(before: list[int], after: list[int]) -> None:
    values = torch.arange(10.0)
    overlaps = saved(values, before)
    found = []
    for start, end in zip([0, *after], [*after, 10], strict=True):
        target = torch.full((end - start,), float("nan"))
        overlaps.fill([Partition("weight", start, 10, {"master": target})])
        found.append(target)
    assert torch.equal(torch.cat(found), values)


@pytest.mark.parametrize(
    ("name", "kind", "size"), [("weight", "master", 12), ("weight", "exp_avg", 10), ("other", "master", 10)]
)
def test_missing_parameters_are_named(name: str, kind: str, size: int) -> None:
    partition = Partition(name, 0, size, {kind: torch.zeros(10)})
    with pytest.raises(CheckpointError, match=rf"elements of {name} \({kind}\).* {size}\."):
        saved(torch.arange(10.0), [4]).fill([partition])


def test_a_gap_between_partitions_is_an_error() -> None:
    overlaps = Overlaps()
    overlaps.add("weight", "master", 6, 4, lambda a, b: torch.zeros(b - a))
    with pytest.raises(CheckpointError):
        overlaps.fill([Partition("weight", 0, 10, {"master": torch.zeros(10)})])


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_is_on_the_devices_that_pytorch_uses(fused: bool) -> None:
    """The weights are not on the CPU; a fused kernel expects the step count on the same device."""

    def adam(device: str, fused: bool) -> tuple[nn.Module, torch.optim.AdamW]:
        module = nn.Linear(3, 2, device=device)
        return module, torch.optim.AdamW(module.parameters(), fused=fused)

    trained, source = adam("cpu", False)
    trained(torch.ones(1, 3)).sum().backward()
    source.step()
    _, expected = adam("meta", fused)
    expected.load_state_dict({**source.state_dict(), "param_groups": expected.state_dict()["param_groups"]})
    module, restored = adam("meta", fused)
    engine = SimpleNamespace(module=module, optimizer=restored, zero_optimization_stage=lambda: 0)
    EngineState(engine).restore(1, lambda partitions: None)

    def places(optimizer: torch.optim.AdamW) -> list[dict[str, tuple]]:
        state = optimizer.state_dict()["state"]
        return [{kind: (t.device, t.dtype, t.shape) for kind, t in state[number].items()} for number in state]

    assert len(places(restored)) == 2
    assert places(restored) == places(expected)


def test_restoring_overwrites_the_existing_moments() -> None:
    """Otherwise other references to them, as in DeepSpeed, would keep the old moments alive."""
    module = nn.Linear(3, 2)
    adam = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    adam.step()
    before = {id(p): adam.state[p]["exp_avg"] for p in module.parameters()}
    state = EngineState(SimpleNamespace(module=module, optimizer=adam, zero_optimization_stage=lambda: 0))

    def read(partitions: list[Partition]) -> None:
        for partition in partitions:
            partition.tensors["exp_avg"].fill_(7.0)

    state.restore(5, read)
    assert all(adam.state[p]["exp_avg"] is before[id(p)] for p in module.parameters())
    assert all((adam.state[p]["exp_avg"] == 7).all() for p in module.parameters())
    assert state.counter() == 5
    state.restore(0, lambda partitions: None)
    assert state.counter() == 0

"""Test that a restored engine continues exactly: make an update, restore the state before it, repeat the update."""

import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from train.engines.state import MASTER, EngineState, Partition

from .harness import Bench
from .sizes import Clip
from .w2s import FAKE, GENERATOR, Course, FixedExit, Subject

_SEED = 0

State = Mapping[tuple[str, str], Tensor]


def measure_restoring(bench: Bench, subject: Subject, clip: Clip) -> None:
    """Measure per role the time of restoring its state, and the relative difference of the repeated update.

    The relative difference is the distance between the weights after the two updates, divided by the distance that the
    first update moved them. It is 0 on a CPU. On a GPU it is small, because some kernels add in no fixed order. If the
    optimizer were not restored correctly, it would be about 1.
    """
    for role in (FAKE, GENERATOR):
        state = EngineState(subject.networks.engine(role).engine)

        def update(role: str = role) -> None:
            # A new course with the same seed draws the same noise and makes the same update.
            Course(subject, clip, FixedExit(_SEED, 0), bench.generator(_SEED)).update(role)

        update()
        counter, before = state.counter(), _copied(state)
        update()
        first = _copied(state)
        bench.synchronize()
        began = time.perf_counter()
        state.restore(counter, partial(_fill, before))
        bench.synchronize()
        seconds = time.perf_counter() - began
        update()
        apart, moved = _distance(_copied(state), first), _distance(first, before)
        bench.record(f"{clip.name}: {role} state, restored", seconds=seconds, relative_difference=apart / moved)


def _copied(state: EngineState) -> State:
    return {
        (partition.name, kind): t.clone() for partition in state.partitions() for kind, t in partition.tensors.items()
    }


def _fill(saved: State, partitions: list[Partition]) -> None:
    for partition in partitions:
        for kind, tensor in partition.tensors.items():
            tensor.copy_(saved[partition.name, kind])


def _distance(one: State, other: State) -> float:
    """Return the distance between the weights of two states."""
    parts = [(one[key] - other[key]).norm() for key in one if key[1] == MASTER]
    return float(torch.stack(parts).norm())

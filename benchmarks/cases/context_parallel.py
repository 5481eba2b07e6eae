"""Measure what two processes gain that share one sample, and how much of their time is communication.

On a CPU they are two processes of one machine with one thread each; on GPUs they need two of them.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from magicdistill_core.families.hunyuan_video import HEAD_DIM
from train.distributed import ContextGroup, context_group
from train.networks import context_parallel
from train.networks.families import kind_of
from train.networks.roles import Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations

from ..harness import GB, Bench, Row
from ..models import random_clip, random_network, random_prompt
from ..sizes import Clip

DEGREE = 2
ROLE = Role("fake", 1.0)
_RANK = 16
_MINUTES = 5


class Exchanges:
    """The seconds that this process spends in exchanges, and the bytes that it sends to others.

    Args:
        synchronize: waits for the device.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds = 0.0
        self.sent = 0
        self._synchronize = synchronize

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Time the exchanges within the context. The time contains the waiting for a slower process."""
        exchange = context_parallel._all_to_all

        def timed(x: Tensor, group: ContextGroup) -> Tensor:
            self._synchronize()
            began = time.perf_counter()
            received = exchange(x, group)
            self._synchronize()
            self.seconds += time.perf_counter() - began
            self.sent += x.nbytes * (group.size - 1) // group.size
            return received

        context_parallel._all_to_all = timed
        try:
            yield
        finally:
            context_parallel._all_to_all = exchange


class Calls:
    """Calls of one network on one clip: a branch on frozen weights with recomputed activations.

    Args:
        bench: the device and its sizes.
        clip: the size of the clip.
        group: the processes that share the clip; None for one process.
    """

    def __init__(self, bench: Bench, clip: Clip, group: ContextGroup | None) -> None:
        shape, generator = bench.sizes.shape, bench.generator()
        if shape.heads % DEGREE:
            shape = replace(shape, hidden=DEGREE * HEAD_DIM)
        network: Any = random_network(shape, bench.device, bench.dtype, generator)
        if group is not None:
            kind_of(network).share(network, group)
        add_branch(network, str(ROLE.adapter), _RANK, _RANK, seed=0)
        self._branch = branch_parameters(network, str(ROLE.adapter))
        checkpoint_activations(network.train())
        prompt = random_prompt(shape, bench.sizes.text_tokens, bench.device, generator)
        self._network = RoleNetwork(network, prompt)
        self._x, self._condition = random_clip(clip, bench.device, bench.dtype, generator)
        self._sigma = torch.full((1,), 0.7, device=bench.device)

    @torch.no_grad()
    def forward(self) -> None:
        """Make one call without gradient."""
        self._network(self._x, self._sigma, self._condition, ROLE)

    def backward(self) -> None:
        """Make one call with gradient, and its backward."""
        velocity = self._network(self._x, self._sigma, self._condition, ROLE)
        torch.autograd.grad(velocity, self._branch, velocity.detach())

    @property
    def variants(self) -> dict[str, Callable[[], None]]:
        """The measured calls by name."""
        return {"forward": self.forward, "forward and backward": self.backward}


def run(bench: Bench) -> None:
    """Measure each clip with one process, then with two that share it."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < DEGREE:
        bench.record(f"{DEGREE} processes", error=f"not run: needs {DEGREE} GPUs")
        return
    for clip in (bench.sizes.usual, bench.sizes.longest):
        with bench.case(clip.name):
            measure(bench, clip, repeats=3 if bench.full else 7)


def measure(bench: Bench, clip: Clip, repeats: int) -> None:
    """Measure one clip.

    Args:
        bench: measures and records.
        clip: the size of the clip.
        repeats: timed rounds.
    """
    threads = torch.get_num_threads()
    # One thread for each process, alone or not.
    torch.set_num_threads(1 if bench.device.type == "cpu" else threads)
    try:
        alone = bench.compare(Calls(bench, clip, None).variants, repeats)
    finally:
        torch.set_num_threads(threads)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    arguments = (port, bench.device.type, bench.full, clip, repeats, out)
    processes = [context.Process(target=_share, args=(number, *arguments)) for number in range(DEGREE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process that shares the clip ended with exit status {process.exitcode}")
    shared: dict[str, Row] = out.get()
    for name, timing in alone.items():
        bench.record(f"{clip.name}: {name}, 1 process", processes=1, tokens=clip.tokens, **timing.row())
        row = shared[name]
        ratio = row["seconds_min"] / timing.minimum
        bench.record(
            f"{clip.name}: {name}, {DEGREE} processes", processes=DEGREE, tokens=clip.tokens, ratio=ratio, **row
        )


def _share(number: int, port: int, device: str, full: bool, clip: Clip, repeats: int, out: Any) -> None:
    """Measure as one of the processes that share the clip; the first one sends the rows by name."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(number)
    own = torch.device(device, number) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    bench = Bench(own, full, lambda row: None)
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        f"tcp://127.0.0.1:{port}",
        rank=number,
        world_size=DEGREE,
        timeout=timedelta(minutes=_MINUTES),
    )
    try:
        rows = shared_rows(bench, clip, repeats)
        if number == 0:
            out.put(rows)
    finally:
        dist.destroy_process_group()


def shared_rows(bench: Bench, clip: Clip, repeats: int) -> dict[str, Row]:
    """Return the columns of each call, measured by all processes together; a collective call.

    The share of communication is that of the fastest round in which exchanges are timed, because others may use the
    machine too. The seconds are those of rounds in which they are not timed.
    """
    variants = Calls(bench, clip, context_group(DEGREE)).variants
    rows = {name: timing.row() for name, timing in bench.compare(variants, repeats).items()}
    for name, call in variants.items():
        rounds = []
        for _ in range(repeats):
            exchanges = Exchanges(bench.synchronize)
            with exchanges.watched():
                seconds = bench.compare({name: call}, 1, warmup=0)[name].median
            rounds.append((seconds, exchanges))
        seconds, exchanges = min(rounds, key=lambda timed: timed[0])
        rows[name] |= {"communication_share": exchanges.seconds / seconds, "sent_gb": exchanges.sent / GB}
    return rows

"""Processes of a run: one by default, several under `torchrun` or `deepspeed`.

A *collective call* must be made by every process of the run, because each process waits in it for the others. The
*rank* is a process's number, from 0; the process of rank 0 is the *main process*.
"""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from magicdistill_core.errors import ConfigError

T = TypeVar("T")


def available_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_environment() -> None:
    """Set the variables of a launcher for a single process if there is no launcher; without CUDA select the CPU.

    Call it before the first import of deepspeed. Repeated calls change nothing.

    Raises:
        ConfigError: if DeepSpeed is not installed.
    """
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"Training needs DeepSpeed, which is not installed here ({sys.platform}). On Linux, install it with "
            f"`uv sync`. On Windows, train under WSL."
        )
    if "RANK" not in os.environ:
        # With port 0 the process takes a free one when it joins its group, and a child process takes another one.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def init_distributed(timeout: float = 30.0) -> torch.device:
    """Join the process group, and select this process's GPU.

    Args:
        timeout: minutes that a process waits for the others in one collective call; then the call fails.

    Returns:
        The device of this process: `cuda:LOCAL_RANK`, or the CPU if there is no GPU.

    Raises:
        ConfigError: if DeepSpeed is not installed.
    """
    prepare_environment()
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile its shared-memory backend. This needs a compiler and a writable cache; gloo does not.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(minutes=timeout),
        verbose=False,
    )
    if not torch.cuda.is_available():
        atexit.register(_leave_group)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _leave_group() -> None:
    """End the threads of gloo. One that still runs when Python ends the process can abort it after its work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def bound_waiting(timeout: float) -> None:
    """Set the timeout of `init_distributed` for all existing process groups.

    DeepSpeed creates more groups without a timeout. PyTorch then waits half an hour in their collective calls.

    Args:
        timeout: minutes.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(minutes=timeout), group)


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the main process (rank 0)."""
    return rank() == 0


@dataclass(frozen=True)
class ContextGroup:
    """The processes that share one sample, of which this process is one.

    Attributes:
        size: their number.
        rank: number of this process among them, from 0.
        processes: their process group; None for a group without processes, whose memory is measured.
    """

    size: int
    rank: int
    processes: dist.ProcessGroup | None

    def __deepcopy__(self, memo: object) -> "ContextGroup":
        # Copies of a network belong to the same processes.
        return self


def context_group(size: int) -> ContextGroup | None:
    """Create the groups of processes that share one sample: `size` consecutive ranks each; a collective call.

    Args:
        size: number of processes that share one sample; it must divide the number of all processes.

    Returns:
        This process's group; None if every process has a sample of its own.
    """
    if size == 1:
        return None
    processes, _ = dist.new_subgroups(group_size=size)
    return ContextGroup(size, rank() % size, processes)


def data_rank(context: int) -> int:
    """Return the number of this process's group among those with different samples, from 0.

    Args:
        context: number of processes that share one sample.
    """
    return rank() // context


def data_size(context: int) -> int:
    """Return the number of groups of processes that have different samples.

    Args:
        context: number of processes that share one sample.
    """
    return world_size() // context


def barrier() -> None:
    """Wait until all processes are here (a collective call)."""
    if dist.is_initialized():
        dist.barrier()


def from_all(value: T) -> list[T]:
    """Gather a value from every process; a collective call.

    Args:
        value: this process's value; it must be possible to pickle it.

    Returns:
        The values of all processes, in order of rank. Without a process group only this process's value.
    """
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def first_error(error: str | None) -> str | None:
    """Return the error of the lowest rank that has one; a collective call.

    Args:
        error: this process's error message; None if it has no error.

    Returns:
        The same message on all processes; None if no process has an error.
    """
    return next((text for text in from_all(error) if text is not None), None)


@contextmanager
def beginning_together() -> Iterator[None]:
    """Run a part of the start-up on all processes; if it fails on one process, all processes raise an error.

    No process then waits for a failed one.

    Raises:
        Exception: the error of this process, unchanged.
        ConfigError: with the message of another process, if this process has no error.
    """
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    message = first_error(None if problem is None else str(problem) or repr(problem))
    if problem is not None:
        raise problem
    if message is not None:
        raise ConfigError(f"Another process of this run cannot begin: {message}")


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process has died or does not answer.

    Args:
        error: the error that a collective call raised.
    """
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def mean_over_processes(values: dict[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Average scalars over all processes; a collective call.

    Args:
        values: this process's scalars by name. All processes must pass the same names in the same order.
        device: where the scalars are summed; NCCL needs a GPU.

    Returns:
        The averages by name, the same on all processes.
    """
    packed = torch.tensor([float(value) for value in values.values()], device=device, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(packed)
        packed /= world_size()
    return dict(zip(values, packed.tolist(), strict=True))

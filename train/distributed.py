"""Processes: one by default, as many as `torchrun` or `deepspeed` started otherwise."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from magicdistill_core.errors import ConfigError

T = TypeVar("T")


def available_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_environment() -> None:
    """Make a process that no launcher started a world of one, and keep DeepSpeed on the hardware that is there.

    To be called before deepspeed is imported; calling it again changes nothing.

    Raises:
        ConfigError: if there is no DeepSpeed.
    """
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"Training needs DeepSpeed, which is not installed here ({sys.platform}). It is for Linux, where `uv sync` "
            f"installs it; on Windows train under WSL."
        )
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def init_distributed(timeout: float = 30.0) -> torch.device:
    """Join the process group; returns this process's device.

    Args:
        timeout: minutes that a process waits for the others in one collective call before it gives up with an error.
    """
    prepare_environment()
    import deepspeed

    if not torch.cuda.is_available():
        # Compiling the shared-memory backend at start-up needs a compiler and a writable cache; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(minutes=timeout),
        verbose=False,
    )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def bound_waiting(timeout: float) -> None:
    """Give every process group that exists the timeout of `init_distributed`.

    DeepSpeed makes groups of its own without one, and PyTorch then waits for half an hour in their collective calls.

    Args:
        timeout: minutes.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(minutes=timeout), group)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def from_all(value: T) -> list[T]:
    """Every process's value, in order of rank (a collective call)."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def first_error(error: str | None) -> str | None:
    """The error of the first process that has one: all processes agree on what went wrong (a collective call)."""
    return next((text for text in from_all(error) if text is not None), None)


@contextmanager
def beginning_together() -> Iterator[None]:
    """A part of a run's beginning that every process gets through, or none: no one waits for one that has failed.

    Raises:
        ConfigError: with the error of another process; its own a process raises as it is.
    """
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    said = first_error(None if problem is None else str(problem) or repr(problem))
    if problem is not None:
        raise problem
    if said is not None:
        raise ConfigError(f"Another process of this run cannot begin: {said}")


def is_lost_process(error: BaseException) -> bool:
    """Whether an error of a collective call says that another process is gone or does not answer."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def mean_over_processes(values: dict[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Scalars averaged over all processes (a collective call: every process has the same names)."""
    packed = torch.tensor([float(value) for value in values.values()], device=device, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(packed)
        packed /= world_size()
    return dict(zip(values, packed.tolist(), strict=True))

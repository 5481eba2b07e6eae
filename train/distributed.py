"""Processes: one by default, as many as `torchrun` or `deepspeed` started otherwise."""

import os
import socket

import torch
import torch.distributed as dist
from torch import Tensor


def prepare_environment() -> None:
    """Make a process that no launcher started a world of one, and keep DeepSpeed on the hardware that is there.

    To be called before deepspeed is imported; calling it again changes nothing.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def init_distributed() -> torch.device:
    """Join the process group; returns this process's device."""
    prepare_environment()
    import deepspeed

    if not torch.cuda.is_available():
        # Compiling the shared-memory backend at start-up needs a compiler and a writable cache; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def mean_over_processes(values: dict[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Scalars averaged over all processes (a collective call: every process has the same names)."""
    packed = torch.tensor([float(value) for value in values.values()], device=device, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(packed)
        packed /= world_size()
    return dict(zip(values, packed.tolist(), strict=True))

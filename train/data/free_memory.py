"""The memory that a device has free."""

from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
_AVAILABLE = "MemAvailable:"


def free_bytes(device: torch.device) -> int:
    """Return how many bytes a device can still give to this process.

    Args:
        device: a CUDA GPU, or another device, which is taken for one that shares the main memory.

    Returns:
        For a GPU what the driver and PyTorch's cache have free; else Linux's estimate for the main memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    line = next(line for line in _MEMORY.read_text().splitlines() if line.startswith(_AVAILABLE))
    return 1024 * int(line.split()[1])

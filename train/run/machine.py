"""The machine and the package versions of a run, for its report."""

import os
import platform
from importlib.metadata import version

import torch

from ..distributed import world_size


def gpu_bytes(device: torch.device) -> int | None:
    """Return the memory of the GPU `device` in bytes; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def machine_facts() -> dict[str, object]:
    """Return the hardware, the number of processes and the package versions, as JSON data."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "processes": world_size(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "diffusers", "peft")},
    }

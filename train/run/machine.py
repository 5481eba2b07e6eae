"""What a run was made with: the machine and the versions, for its report."""

import os
import platform
from importlib.metadata import version

import torch

from ..distributed import world_size


def gpu_bytes(device: torch.device) -> int | None:
    """The memory of a GPU; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def machine_facts() -> dict[str, object]:
    """Hardware and versions of this process, as JSON."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "processes": world_size(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "diffusers", "peft")},
    }

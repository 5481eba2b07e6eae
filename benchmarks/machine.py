"""Describe the machine, and measure its speed in a plain matrix product and a plain copy."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .harness import GB, Bench

_PACKAGES = ("torch", "triton", "diffusers", "peft", "deepspeed", "accelerate", "transformers", "safetensors", "numpy")


def facts(bench: Bench) -> dict[str, Any]:
    """Return names, sizes and versions; measures nothing."""
    about: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(bench.device),
        "sizes": "13B" if bench.full else "pocket",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        about |= {
            "device_memory_gb": round(properties.total_memory / GB, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def limits(bench: Bench) -> dict[str, float]:
    """Measure what the machine can reach.

    The matrices hold random numbers, because a product of zeros takes less power and runs faster. The copy counts the
    bytes read and the bytes written.

    Returns:
        `matmul_tflops`: TFLOP/s of a product of square matrices in the networks' dtype.
        `copy_gb_per_s`: GB/s of a copy.
    """
    on_gpu = bench.device.type == "cuda"
    side, elements, times = (8192, 2**30, 20) if on_gpu else (1024, 2**26, 2)
    generator = bench.generator()
    left, right = (
        torch.randn(side, side, device=bench.device, dtype=bench.dtype, generator=generator) for _ in range(2)
    )
    product = torch.empty_like(left)
    source = torch.empty(elements, device=bench.device, dtype=torch.bfloat16).normal_(generator=generator)
    target = torch.empty_like(source)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=product)

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    timings = bench.compare({"multiply": multiply, "copy": copy}, repeats=7, warmup=2)
    return {
        "matmul_tflops": times * 2 * side**3 / timings["multiply"].median / 1e12,
        "copy_gb_per_s": times * 2 * source.nbytes / timings["copy"].median / GB,
    }


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor on a CPU device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

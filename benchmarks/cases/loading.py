"""Measure writing a model file and loading it to the device: seconds, and the peak memory of the host."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.recipe import Recipe
from train.networks.network import load_network
from train.networks.prompts import prompt_on
from train.networks.weights import load_weights

from ..harness import GB, Bench, HostMemory, Row
from ..models import random_network, random_prompt


def run(bench: Bench) -> None:
    """Write a model file in bf16, load it from the disk, and load it again from the page cache."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    file = folder / "teacher.safetensors"
    try:
        with bench.case("write"):
            _write(bench, file)
        if not file.exists():
            return
        for name, cold, straight in (
            ("load from disk", True, False),
            ("load from the page cache", False, False),
            ("load from the page cache, tensors read straight to the device", False, True),
        ):
            if bench.time_for(name, 25 if bench.full else 1):
                with bench.case(name):
                    bench.record(name, **_load(bench, file, cold, straight))
    finally:
        shutil.rmtree(folder)


def _write(bench: Bench, file: Path) -> None:
    generator = bench.generator()
    network = random_network(bench.sizes.shape, bench.device, torch.bfloat16, generator)
    on_device = random_prompt(bench.sizes.shape, bench.sizes.text_tokens, bench.device, generator)
    prompt = prompt_on(on_device, torch.device("cpu"))
    clip = bench.sizes.usual
    recipe = Recipe(
        kind="teacher", steps=28, shift=5.0, width=clip.width, height=clip.height, frames=clip.frames, fps=24
    )
    state = diffusers_to_file(HUNYUAN_VIDEO, network.state_dict())
    with HostMemory() as memory:
        took = bench.compare({"write": lambda: save_checkpoint(file, state, recipe, prompt)}, 1, warmup=0)["write"]
    size = file.stat().st_size / GB
    kind = _file_system(file)
    bench.record("write", **_rates(size, took.median), **memory.row(), file_system=kind)


def _load(bench: Bench, file: Path, cold: bool, straight: bool) -> Row:
    if cold:
        _forget(file)
    device = str(bench.device)

    def load() -> None:
        checkpoint = load_checkpoint(file, device) if straight else load_weights(file)
        load_network(checkpoint, torch.bfloat16, bench.device)

    with HostMemory() as memory:
        took = bench.compare({"load": load}, 1, warmup=0)["load"]
    columns = _rates(file.stat().st_size / GB, took.median) | memory.row()
    if took.peak_bytes:
        columns["peak_gb"] = took.peak_bytes / GB
    return columns


def _rates(gigabytes: float, seconds: float) -> Row:
    return {"file_gb": gigabytes, "seconds": seconds, "gb_per_s": gigabytes / seconds}


def _forget(file: Path) -> None:
    """Ask the system to remove a file from the page cache."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _file_system(path: Path) -> str:
    """Return the file system of a path. It matters, because a file system in memory reads from no disk."""
    kinds = {}
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split()
        if path.resolve().is_relative_to(mount):
            kinds[mount] = kind
    return kinds[max(kinds, key=len)] if kinds else "unknown"

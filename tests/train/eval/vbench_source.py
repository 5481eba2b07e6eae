"""The package vbench 0.1.5 as an oracle: its inner functions, without the packages that its networks need."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "vbench-0.1.5"
# Packages that vbench imports and its inner functions do not need, or need only to read files.
_ABSENT = ("decord", "clip", "easydict", "omegaconf", "imageio", "pyiqa", "pyiqa.archs", "pyiqa.archs.musiq_arch")


def vbench_source() -> Path:
    """The unpacked wheel; downloaded once.

    Raises:
        OSError: if it cannot be downloaded.
    """
    if not CACHE.is_dir():
        CACHE.parent.mkdir(exist_ok=True)
        command = ["download", "--no-deps", "--quiet", "--dest", str(CACHE.parent), "vbench==0.1.5"]
        done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, timeout=120)
        wheels = list(CACHE.parent.glob("vbench-0.1.5*.whl"))
        if done.returncode or not wheels:
            raise OSError(done.stderr.strip() or "pip downloaded nothing")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(CACHE)
    return CACHE


@contextmanager
def vbench_modules(*names: str) -> Iterator[list[ModuleType]]:
    """Import modules of vbench inside the block, and leave no trace of them."""
    before = set(sys.modules)
    sys.path.insert(0, str(vbench_source()))
    for name in _ABSENT:
        sys.modules.setdefault(name, MagicMock())
    try:
        yield [import_module(name) for name in names]
    finally:
        sys.path.remove(str(vbench_source()))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in {"vbench", "vbench2_beta_i2v", *(absent.split(".")[0] for absent in _ABSENT)}:
                del sys.modules[name]

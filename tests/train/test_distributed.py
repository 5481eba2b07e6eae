"""The environment of processes that no launcher started."""

import os
import subprocess
import sys

import pytest

from magicdistill_core.errors import ConfigError
from train import distributed


def test_a_missing_deepspeed_names_linux_and_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"DeepSpeed.*Linux.*`uv sync`.*WSL"):
        distributed.prepare_environment()


# Joins a group, and while it is open starts a child that inherits the environment and joins a group of its own.
_NESTED = """
import subprocess, sys
from train.distributed import from_all, init_distributed
init_distributed()
assert from_all(3) == [3]
if len(sys.argv) < 2:
    sys.exit(subprocess.run([sys.executable, "-c", sys.stdin.read(), "child"]).returncode)
"""


@pytest.mark.slow
def test_a_training_started_by_a_training_process_joins_its_own_group() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_PORT")}
    command = [sys.executable, "-c", _NESTED]
    done = subprocess.run(command, input=_NESTED, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# What is registered first runs last, so this looks at the group after everything else has ended.
_ENDING = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print("left" if not dist.is_initialized() else "still in the group"))
from train.distributed import init_distributed
for _ in range(2):
    init_distributed()
assert dist.is_initialized()
"""


@pytest.mark.slow
def test_a_process_leaves_its_group_before_it_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _ENDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "left"), done.stderr[-3000:]

"""A run on two nodes: two groups of `torchrun`, as on two machines, with one process each that share every sample."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, json_lines, random_prompt
from tests.train.conftest import FRAMES, ROOT, SIDE
from train.run_folder import checkpoint_folder, read_manifest

SECONDS = 240


class Node:
    """One group of processes, and what it prints."""

    def __init__(self, number: int, host: str, config: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", host, "-m", "train", "train", str(config)]
        self.output = config.with_name(f"node-{number}.txt")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with open(self.output, "w") as file:
            self.group = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def worker(self) -> tuple[int, int]:
        """The rank and the id of the training process."""
        children = Path(f"/proc/{self.group.pid}/task/{self.group.pid}/children").read_text().split()
        for child in children:
            variables = Path(f"/proc/{child}/environ").read_text().split("\0")
            ranks = [variable[5:] for variable in variables if variable.startswith("RANK=")]
            if ranks:
                return int(ranks[0]), int(child)
        raise AssertionError(self.output.read_text())


@pytest.fixture
def nodes(tmp_path: Path, tiny_config: Callable[..., dict]) -> Iterator[list[Node]]:
    """Two nodes that train without end a network of two heads in `run`."""
    teacher, config = tmp_path / "teacher.safetensors", tmp_path / "config.yaml"
    recipe = Recipe(kind="teacher", steps=28, shift=5.0, width=SIDE, height=SIDE, frames=FRAMES, fps=24)
    save_checkpoint(teacher, file_state(hunyuan_shape(hidden=256)), recipe, random_prompt())
    tree = tiny_config(tmp_path / "run", updates=10**6, checkpoint={"every": 2, "keep": 2})
    tree["model"] |= {"teacher": str(teacher), "mode": "lora"}
    config.write_text(yaml.safe_dump(tree | {"context_parallel": 2, "timeout": 1.0}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [Node(number, host, config) for number in range(2)]
    yield started
    for node in started:
        if node.group.poll() is None:
            os.killpg(node.group.pid, signal.SIGKILL)
        node.group.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_dies_on_another_node_ends_the_run(tmp_path: Path, nodes: list[Node]) -> None:
    log, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + SECONDS
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        said = [node.output.read_text() for node in nodes]
        assert time.monotonic() < until, said
        assert all(node.group.poll() is None for node in nodes), said
        time.sleep(0.1)
    workers = dict(node.worker() for node in nodes)
    os.kill(workers[1], signal.SIGKILL)
    died = time.monotonic()
    assert all(node.group.wait(SECONDS) for node in nodes)
    # The timeout of the run is a minute. The groups of torchrun need some seconds more.
    assert time.monotonic() - died < 90
    said = [node.output.read_text() for node in nodes]
    assert any("Another process of this run has died" in text and "--resume" in text for text in said), said
    last = json_lines(tmp_path / "run" / "events.jsonl")[-1]
    assert (last["event"], "has died" in last["error"]) == ("failed", True)
    assert read_manifest(checkpoint_folder(tmp_path / "run")).update >= 4

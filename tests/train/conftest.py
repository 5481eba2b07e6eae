"""A tiny teacher, a tiny dataset and a configuration for all tests that train."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import StartImage
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter

ROOT = Path(__file__).resolve().parents[2]
TINY = hunyuan_shape(refiner_blocks=2)
FRAMES, SIDE, SAMPLES = 5, 32, 12


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny teacher with a null prompt, fp32."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    recipe = Recipe(kind="teacher", steps=28, shift=5.0, width=SIDE, height=SIDE, frames=FRAMES, fps=24)
    save_checkpoint(path, file_state(TINY), recipe, random_prompt())
    return path


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of random latents."""
    folder = tmp_path_factory.mktemp("dataset")
    index = DatasetIndex(frames=FRAMES, height=SIDE, width=SIDE, fps=24, vae_sha256="0" * 64, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with LatentWriter(folder, index) as writer:
        for number in range(SAMPLES):
            latent = torch.randn(16, 2, SIDE // 8, SIDE // 8, generator=generator)
            writer.append(f"{number:04d}", latent, StartImage(latent[None, :, :1]))
    return folder


@pytest.fixture(scope="session")
def negative_prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second prompt for the tiny teacher."""
    path = tmp_path_factory.mktemp("prompt") / "negative.safetensors"
    save_file(null_prompt_tensors(random_prompt(seed=2)), path)
    return path


@pytest.fixture
def tiny_config(teacher_file: Path, dataset_folder: Path) -> Callable[..., dict]:
    """Builds a configuration as plain data; keyword arguments replace whole sections."""

    def build(run: Path, **sections: object) -> dict:
        return {
            "run": str(run),
            "updates": 2,
            "model": {
                "teacher": str(teacher_file),
                "mode": "full",
                "precision": "fp32",
                "generator_branch": {"rank": 4, "alpha": 8.0},
                "fake_branch": {"rank": 4, "alpha": 2.0},
            },
            "data": {"dataset": str(dataset_folder), "micro_batch": 1, "accumulation": 2},
            "method": {"fake_updates": 2},
            "generator_optimizer": {"lr": 1e-3, "clip": 0.5},
            "fake_optimizer": {"lr": 1e-2, "clip": 0.5},
            "zero": {"stage": 2},
            "validation": {"every": 0},
            "checkpoint": {"every": 100, "keep": 2},
        } | sections

    return build


@dataclass(frozen=True)
class Life:
    """The exit codes and the output of a training's processes, by rank."""

    codes: list[int]
    output: list[str]

    @property
    def said(self) -> str:
        """The output of all processes, joined."""
        return "\n".join(self.output)


@pytest.fixture(scope="session")
def _lives() -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("lives.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert json.loads(server.stdout.readline()) == "ready"
    yield server
    server.communicate()


@pytest.fixture
def live(_lives: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Life]:
    """Trains one configuration in forked processes, which share one import of all modules; see `lives.Request`."""

    def run(config: dict, *flags: str, **request: object) -> Life:
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*')))}.yaml"
        path.write_text(yaml.safe_dump(config))
        line = json.dumps({"arguments": [str(path), *flags], "log": f"{config['run']}/metrics.jsonl", **request})
        assert _lives.stdin is not None
        assert _lives.stdout is not None
        _lives.stdin.write(line + "\n")
        _lives.stdin.flush()
        return Life(**json.loads(_lives.stdout.readline()))

    return run


@pytest.fixture
def train_runs(live: Callable[..., Life]) -> Callable[..., None]:
    """Trains configurations one after another, each in 1..N processes; fails with the output if one fails."""

    def launch(processes: int, configs: list[dict], *flags: str) -> None:
        for config in configs:
            life = live(config, *flags, processes=processes)
            assert set(life.codes) == {0}, life.said[-8000:]

    return launch


@pytest.fixture
def magicdistill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: status, stdout, stderr."""
    from train.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["magicdistill", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run

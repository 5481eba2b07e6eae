"""A teacher and a reader for tests that only need ones of the right shape."""

from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt
from train.pocket.measuring.reader.network import ReaderNetwork, initialise
from train.pocket.measuring.reader.reading import save_reader


@pytest.fixture
def reader_file(tmp_path: Path) -> Path:
    """The file of an untrained reader."""
    network = ReaderNetwork()
    initialise(network, torch.Generator().manual_seed(0))
    path = tmp_path / "untrained_reader.safetensors"
    save_reader(network, path)
    return path


@pytest.fixture(scope="session")
def portrait_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny teacher of clips of the pocket world's size."""
    path = tmp_path_factory.mktemp("portrait_teacher") / "teacher.safetensors"
    recipe = Recipe(kind="teacher", steps=28, shift=5.0, width=96, height=96, frames=17, fps=24)
    save_checkpoint(path, file_state(hunyuan_shape(refiner_blocks=2)), recipe, random_prompt())
    return path

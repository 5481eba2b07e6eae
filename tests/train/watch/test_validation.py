"""The start images of validation, and the check of its VAE."""

import logging
from pathlib import Path

import pytest
import torch

from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.hashes import weights_sha256
from train.config.training import ScheduleConfig, ValidationConfig
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.watch.validation import Validation


def dataset(folder: Path, vae_hash: str) -> LatentDataset:
    """A dataset of nine samples; each one has its number as constant value."""
    index = DatasetIndex(frames=5, height=32, width=32, fps=24.0, dtype="float32", vae_sha256=vae_hash)
    with LatentWriter(folder, index) as writer:
        for number in range(9):
            image = StartImage(torch.full((1, 16, 1, 4, 4), float(number)))
            writer.append(str(number), torch.full((16, 2, 4, 4), float(number)), image)
    return LatentDataset(folder)


def validation(data: LatentDataset, vae: Path, samples: int, folder: Path) -> Validation:
    settings = ValidationConfig(every=1, samples=samples, vae=str(vae))
    return Validation(settings, ScheduleConfig(), data, CONCAT, folder, torch.device("cpu"))


@pytest.mark.parametrize(("samples", "expected"), [(1, [0]), (3, [0, 3, 6]), (20, list(range(9)))])
def test_start_images_are_spread_over_the_dataset(
    samples: int, expected: list[int], tmp_path: Path, taehv_file: Path
) -> None:
    found = validation(dataset(tmp_path / "data", "x"), taehv_file, samples, tmp_path).images.latents
    assert found[:, 0, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("same", [True, False])
def test_a_vae_other_than_the_datasets_is_reported(
    same: bool, tmp_path: Path, taehv_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(tmp_path / "data", weights_sha256(taehv_file) if same else "0" * 64)
    with caplog.at_level(logging.WARNING):
        validation(data, taehv_file, 1, tmp_path)
    assert (f"validation.vae ({taehv_file})" in caplog.text) is not same

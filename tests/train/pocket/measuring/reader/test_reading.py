"""The reader: its file, the shapes of what it reads, and its errors."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.safetensors_file import read_metadata
from train.pocket.measuring.reader.network import ReaderNetwork
from train.pocket.measuring.reader.quantities import IDENTITY, MOTION
from train.pocket.measuring.reader.reading import (
    Reader,
    ReaderError,
    Readings,
    identity_distance,
    load_reader,
    save_reader,
)

from .tiny import untrained_network

FRAMES = torch.rand(2, 3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reader_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "reader.safetensors"
    network = untrained_network()
    network.motion_mean.copy_(torch.linspace(-1, 1, len(MOTION)))
    network.identity_std.copy_(torch.linspace(0.5, 2, len(IDENTITY)))
    network.identity_scale.fill_(3.0)
    network.whole_shift.fill_(0.25)
    save_reader(network, path)
    return path


def test_the_file_is_small_and_holds_what_was_saved(reader_file: Path) -> None:
    assert reader_file.stat().st_size < 600_000
    loaded = load_reader(reader_file).read(FRAMES)
    network = untrained_network()
    network.load_state_dict({name: value.float() for name, value in load_file(reader_file).items()})
    with torch.no_grad():
        motion, identity, whole = network(FRAMES[1])
    torch.testing.assert_close(loaded.yaw[1], motion[:, 0] - 1)
    torch.testing.assert_close(loaded.motion[1], motion + torch.linspace(-1, 1, len(MOTION)))
    torch.testing.assert_close(loaded.identity[1], 3 * identity)
    torch.testing.assert_close(loaded.whole[1], torch.sigmoid(whole + 0.25))


def test_readings_have_one_value_per_frame(reader_file: Path) -> None:
    reader = load_reader(reader_file)
    readings = reader.read(FRAMES)
    for field in fields(Readings):
        assert getattr(readings, field.name).shape[:2] == (2, 3)
    assert readings.identity.shape[2:] == (len(IDENTITY),)
    assert readings.motion.std() > 1e-3
    # A frame is read alone: neither the batch nor its place in the clip matters.
    alone = reader.read(FRAMES[1:, 2:])
    torch.testing.assert_close(alone.motion[0, 0], readings.motion[1, 2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(readings.clips(slice(1, 2)).whole, readings.whole[1:])


def test_attributes_are_in_the_units_of_the_renderer(reader_file: Path) -> None:
    reader = load_reader(reader_file)
    readings = reader.read(FRAMES)
    expected = readings.identity / 3 * torch.linspace(0.5, 2, len(IDENTITY))
    torch.testing.assert_close(reader.attributes(readings), expected)


def test_a_new_network_reads_the_means() -> None:
    network = ReaderNetwork()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    network.motion_mean.fill_(0.2)
    readings = Reader(network).read(FRAMES)
    torch.testing.assert_close(readings.motion, torch.full((2, 3, len(MOTION)), 0.2))
    torch.testing.assert_close(readings.whole, torch.full((2, 3), 0.5))


def test_the_distance_of_identities_is_a_root_mean_square() -> None:
    first, second = torch.zeros(2, 4), torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 2]])
    assert identity_distance(first, second).tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 2, 3, 64, 64), r"\[1, 2, 3, 64, 64\].*Resize"),
        (torch.zeros(2, 3, 96, 96), r"\[B, T, 3, 96, 96\]"),
        (torch.zeros(1, 1, 3, 96, 96, dtype=torch.uint8), "uint8.*to_unit_frames"),
        (torch.full((1, 1, 3, 96, 96), 255.0), "values from 255 to 255"),
        (torch.full((1, 1, 3, 96, 96), torch.nan), "nan"),
    ],
)
def test_other_frames_are_refused(frames: torch.Tensor, message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        Reader(untrained_network()).read(frames)


def test_other_files_are_refused(reader_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"no reader.*train-reader"):
        load_reader(tmp_path / "missing.safetensors")
    state, metadata = load_file(reader_file), read_metadata(reader_file)
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(ReaderError, match="not a reader of this version: its kind is None"):
        load_reader(tmp_path / "plain.safetensors")
    save_file(state, tmp_path / "other.safetensors", metadata | {"motion": "yaw,pitch"})
    with pytest.raises(ReaderError, match="not a reader of this version"):
        load_reader(tmp_path / "other.safetensors")
    save_file({**state, "head.bias": torch.zeros(3)}, tmp_path / "wider.safetensors", metadata)
    with pytest.raises(ReaderError, match="not a reader of this version"):
        load_reader(tmp_path / "wider.safetensors")

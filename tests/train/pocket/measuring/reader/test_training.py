"""The training of the reader at toy size: it learns, and a resumed run is bit-equal to an uninterrupted run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magicdistill_core.errors import ConfigError
from train.pocket.measuring.reader import examples, training
from train.pocket.measuring.reader.batches import Batch
from train.pocket.measuring.reader.network import ReaderNetwork
from train.pocket.measuring.reader.quantities import IDENTITY, MOTION
from train.pocket.measuring.reader.reading import load_reader
from train.pocket.measuring.reader.training import ReaderConfig, reader_loss, train_reader
from train.watch.log import RunLog, read_lines

from ..linear_vae import LinearVae
from .tiny import untrained_network

TINY = {"updates": 3, "batch": 8, "clips": 2, "drawn": 2, "calibration": 2, "checkpoint_every": 1}


class StoppedError(Exception):
    """Simulates a killed process."""


@pytest.fixture
def linear_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "load_vae", lambda path, device: LinearVae())
    monkeypatch.setattr(training, "load_vae", lambda path, device: LinearVae())
    monkeypatch.setattr(training, "_VALIDATION_FRAMES", 16)


def batch_of(network: ReaderNetwork, count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(count, 3, 96, 96, generator=generator)
    with torch.no_grad():
        motion, identity, _ = network(frames)
    return Batch(
        frames=frames,
        motion=motion,
        motion_seen=torch.ones(count, len(MOTION)),
        identity=identity,
        identity_seen=torch.ones(count),
        whole=torch.tensor([1.0, 0, 1, 0]),
        whole_known=torch.ones(count),
    )


def test_the_loss_counts_only_what_can_be_seen() -> None:
    network = untrained_network()
    batch = batch_of(network)
    config = ReaderConfig(identity_weight=2.0, whole_weight=0.0)
    loss, parts = reader_loss(network, batch, config)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    seen = batch.motion_seen.clone()
    seen[1] = 0
    motion, identity = batch.motion.clone(), batch.identity.clone()
    motion[1] += 100
    motion[0, 2] += 3
    identity[3] += 0.5
    changed = Batch(**(vars(batch) | {"motion": motion, "motion_seen": seen, "identity": identity}))
    loss, parts = reader_loss(network, changed, config)
    assert parts["motion"] == pytest.approx(9 / (3 * len(MOTION)), rel=1e-4)
    assert parts["identity"] == pytest.approx(0.25 / 4, rel=1e-4)
    assert loss.item() == pytest.approx(parts["motion"] + 2 * parts["identity"], rel=1e-4)


def test_errors_are_standardised() -> None:
    network = untrained_network()
    batch = batch_of(network)
    network.motion_std.fill_(0.1)
    network.motion_mean.fill_(0.3)
    network.identity_std.fill_(4.0)
    scaled = Batch(**(vars(batch) | {"motion": 0.3 + 0.1 * batch.motion, "identity": 4 * batch.identity}))
    _, parts = reader_loss(network, scaled, ReaderConfig())
    assert parts["motion"] == pytest.approx(0, abs=1e-6)
    assert parts["identity"] == pytest.approx(0, abs=1e-6)
    assert len(IDENTITY) == batch.identity.shape[1]


@pytest.mark.usefixtures("linear_vae")
def test_a_resumed_training_is_bit_equal(tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ReaderConfig.model_validate(TINY)
    found = train_reader(config, taehv_file, tmp_path / "once", tmp_path / "once.st")
    assert set(found) == {*(f"r2/{name}" for name in MOTION), "detected"}
    log = RunLog.log

    def die_once(self: RunLog, step: int, metrics: dict[str, float], seconds: float) -> None:
        if step == 2:
            monkeypatch.setattr(RunLog, "log", log)
            raise StoppedError
        log(self, step, metrics, seconds)

    monkeypatch.setattr(RunLog, "log", die_once)
    with pytest.raises(StoppedError):
        train_reader(config, taehv_file, tmp_path / "run", tmp_path / "resumed.st")
    again = train_reader(config, taehv_file, tmp_path / "run", tmp_path / "resumed.st")
    once, resumed = load_file(tmp_path / "once.st"), load_file(tmp_path / "resumed.st")
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    assert again == found
    load_reader(tmp_path / "resumed.st").read(torch.rand(1, 1, 3, 96, 96))
    with pytest.raises(ConfigError, match="batch differ"):
        train_reader(config.model_copy(update={"batch": 12}), taehv_file, tmp_path / "run", tmp_path / "resumed.st")


@pytest.mark.slow
@pytest.mark.usefixtures("linear_vae")
def test_it_learns(tmp_path: Path, taehv_file: Path) -> None:
    """The training loss falls."""
    config = ReaderConfig.model_validate(TINY | {"updates": 60, "batch": 16, "clips": 4, "drawn": 40, "calibration": 4})
    config = config.model_copy(update={"average": config.average.model_copy(update={"decay": 0.9, "start": 0})})
    train_reader(config, taehv_file, tmp_path / "run", tmp_path / "reader.st")
    rows = [row["loss"] for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert sum(rows[-10:]) < 0.8 * sum(rows[:10])

"""The clips of validation, their shares, their scores, and the check of the VAE."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import train.distributed
import train.watch.validation
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.flow import few_step_sigmas, sample_euler
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.metrics.energy_score import energy_scores
from train.config.training import ScheduleConfig, ValidationConfig
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.watch.best import EnergyRecord
from train.watch.validation import Validation

SHAPE = (16, 2, 4, 4)


@pytest.fixture
def no_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores need no VAE, and loading one takes time."""
    monkeypatch.setattr(Validation, "_load_vae", lambda self, data: None)


def dataset(folder: Path, vae_hash: str = "x") -> LatentDataset:
    """A dataset of nine samples; each one has its number as constant value."""
    index = DatasetIndex(frames=5, height=32, width=32, fps=24.0, dtype="float32", vae_sha256=vae_hash)
    with LatentWriter(folder, index) as writer:
        for number in range(9):
            image = StartImage(torch.full((1, 16, 1, 4, 4), float(number)))
            writer.append(str(number), torch.full(SHAPE, float(number)), image)
    return LatentDataset(folder)


def validation(
    data: LatentDataset,
    folder: Path,
    *,
    held_out: tuple[int, ...] = (),
    family=CONCAT,
    batch: int = 4,
    context: int = 1,
    **settings,
) -> Validation:
    return Validation(
        ValidationConfig(**{"every": 10} | settings),
        ScheduleConfig(steps=2),
        data,
        held_out,
        family,
        folder,
        torch.device("cpu"),
        batch,
        context=context,
    )


@dataclass
class Networks:
    """A generator whose velocity depends on the noise and on the start image, and the sizes of its batches."""

    calls: list[int]

    def generator_velocity(self, condition: torch.Tensor):
        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.calls.append(len(x))
            return 0.5 * x - self.image(condition)

        return velocity

    @staticmethod
    def image(condition: torch.Tensor) -> torch.Tensor:
        return condition[:, :1, :1, :1, :1]


@pytest.mark.usefixtures("no_vae")
@pytest.mark.parametrize(("samples", "expected"), [(1, [0]), (3, [0, 3, 6]), (20, list(range(9)))])
def test_clips_are_spread_over_the_dataset(samples: int, expected: list[int], tmp_path: Path) -> None:
    assert validation(dataset(tmp_path / "data"), tmp_path, samples=samples).clips == expected


@pytest.mark.usefixtures("no_vae")
def test_held_out_clips_are_used_if_there_are_any(tmp_path: Path) -> None:
    assert validation(dataset(tmp_path / "data"), tmp_path, samples=2, held_out=(1, 4, 5, 8)).clips == [1, 5]


@pytest.mark.usefixtures("no_vae")
def test_scores_are_those_of_samples_with_their_own_noise(tmp_path: Path) -> None:
    """Also if clips and seeds share a batch. The first sample of a clip has the noise of `seed` plus its place."""
    data = dataset(tmp_path / "data")
    found = validation(data, tmp_path, samples=3, seeds=2, seed=7, shown=2)
    networks = Networks([])
    energies, shown = found.run(networks)  # type: ignore[arg-type]
    assert networks.calls == [4, 4, 2, 2]
    for place, clip in enumerate((0, 3, 6)):
        samples = []
        for number in range(2):
            noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(7 + place + 3 * number))
            samples.append(sample_euler(lambda x, s, c=clip: 0.5 * x - c, noise, few_step_sigmas(2, 5.0))[0])
        expected = energy_scores(torch.stack(samples)[None], data.latents([clip]))
        assert energies[place] == pytest.approx(float(expected))
        if place < 2:
            torch.testing.assert_close(shown[place][0], samples[0])
    assert len(shown) == 2


@pytest.mark.usefixtures("no_vae")
def test_the_start_image_of_token_replacement_does_not_count(tmp_path: Path) -> None:
    class Constant(Networks):
        @staticmethod
        def image(condition: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1)

    data = dataset(tmp_path / "data")
    energies, shown = validation(data, tmp_path, samples=9, family=TOKEN_REPLACE).run(Constant([]))  # type: ignore[arg-type]
    assert shown[1].shape == (1, *SHAPE)
    assert torch.equal(shown[1][:, :, :1], torch.ones(1, 16, 1, 4, 4))
    # Clip 0 is zero, and so is its image: with one generated frame the score is the one of that frame alone.
    noise = [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))[:, :, 1:] for seed in (0, 9)]
    samples = torch.stack([sample_euler(lambda x, s: 0.5 * x, x, few_step_sigmas(2, 5.0)) for x in noise], dim=1)
    assert energies[0] == pytest.approx(float(energy_scores(samples, torch.zeros(1, 16, 1, 4, 4))))


@pytest.mark.usefixtures("no_vae")
@pytest.mark.parametrize(("processes", "context"), [(2, 1), (4, 1), (4, 2)])
def test_processes_share_the_clips_and_make_equally_many_calls(
    processes: int, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, module = dataset(tmp_path / "data"), train.watch.validation
    settings = {"samples": 5, "seeds": 3, "batch": 2, "shown": 2}
    alone, _ = validation(data, tmp_path, **settings).run(Networks([]))  # type: ignore[arg-type]
    monkeypatch.setattr(train.distributed, "world_size", lambda: processes)
    settings["context"] = context
    given, calls = [], []

    def collected(mine: object) -> list:
        given.append(mine)
        raise InterruptedError

    for rank in range(processes):
        monkeypatch.setattr(train.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module, "from_all", collected)
        networks = Networks([])
        part = validation(data, tmp_path, **settings)
        with pytest.raises(InterruptedError):
            part.run(networks)  # type: ignore[arg-type]
        calls.append(networks.calls)
    assert all(made == calls[0] for made in calls)
    # Those that share a sample make the same calls.
    assert sum(calls[0]) == 2 * 3 * -(-5 // (processes // context))
    monkeypatch.setattr(module, "from_all", lambda mine: given)
    energies, shown = part.run(Networks([]))  # type: ignore[arg-type]
    assert energies == pytest.approx(alone)
    assert len(shown) == 2


@pytest.mark.usefixtures("no_vae")
def test_a_validation_is_due_at_the_start_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    found, made = validation(data, tmp_path, samples=2), EnergyRecord("")
    assert found.due(0, 25, made)
    assert found.due(3, 25, made)  # a run of an earlier version
    made.observe(0, [1.0, 2.0])
    due = []
    for update in range(26):
        if found.due(update, 25, made):
            made.observe(update, [1.0, 2.0])
            due.append(update)
            assert not found.due(update, 25, made)
    assert due == [10, 20, 25]
    off = validation(data, tmp_path, every=0)
    assert not any(off.due(update, 25, EnergyRecord("")) for update in range(26))


@pytest.mark.usefixtures("no_vae")
def test_only_what_decides_the_samples_is_in_the_key(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    key = validation(data, tmp_path).key
    assert validation(data, tmp_path, every=5, shown=1, batch=1).key == key
    for change in ({"samples": 3}, {"seeds": 3}, {"seed": 1}, {"held_out": (3,)}):
        assert validation(data, tmp_path, **change).key != key


@pytest.mark.parametrize("same", [True, False])
def test_a_vae_other_than_the_datasets_is_reported(
    same: bool, tmp_path: Path, taehv_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(tmp_path / "data", weights_sha256(taehv_file) if same else "0" * 64)
    with caplog.at_level(logging.WARNING):
        validation(data, tmp_path, vae=str(taehv_file))
    assert (f"validation.vae ({taehv_file})" in caplog.text) is not same

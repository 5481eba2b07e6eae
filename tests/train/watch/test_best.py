"""The record of validations: differences from the start, resuming, and what cannot be compared."""

import json
import math

import pytest
import torch

from train.config.training import CheckpointConfig
from train.watch.best import EnergyRecord


def energies(seed: int, shift: float = 0.0) -> list[float]:
    """Scores of 40 clips, which differ much more from each other than from one validation to the next."""
    clips = 5 * torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (clips + noise + shift).tolist()


def test_the_first_validation_is_the_start() -> None:
    record = EnergyRecord("a")
    first = record.observe(0, energies(1))
    assert (first.difference, first.standard_error, first.since) == (0, 0, 0)
    assert first.energy == first.start == pytest.approx(sum(energies(1)) / 40)
    assert (record.since, record.last) == (0, 0)


def test_differences_are_taken_clip_by_clip() -> None:
    record = EnergyRecord("a")
    record.observe(0, energies(1))
    found = record.observe(50, energies(2, shift=-0.2))
    differences = torch.tensor(energies(2, shift=-0.2)) - torch.tensor(energies(1))
    assert found.difference == pytest.approx(float(differences.mean()), rel=1e-4)
    assert found.standard_error == pytest.approx(float(differences.std()) / 40**0.5, rel=1e-4)
    # The scores themselves have an error more than five times as large.
    assert found.standard_error < 0.2 * float(torch.tensor(energies(2)).std()) / 40**0.5
    assert found.energy == pytest.approx(found.start + found.difference)


def test_one_clip_has_no_known_error() -> None:
    record = EnergyRecord("a")
    assert record.observe(0, [1.0]).standard_error == math.inf


def test_a_resumed_record_continues_equally() -> None:
    whole, resumed = EnergyRecord("a"), EnergyRecord("a")
    for record in (whole, resumed):
        record.observe(0, energies(1))
    again = EnergyRecord("a")
    again.restore(json.loads(json.dumps(resumed.notes())))
    assert again.observe(50, energies(2)) == whole.observe(50, energies(2))
    assert again.notes() == whole.notes()


@pytest.mark.parametrize("other", [True, False])
def test_scores_of_other_clips_and_of_no_record_are_not_compared(other: bool) -> None:
    before, record = EnergyRecord("b"), EnergyRecord("a")
    before.observe(0, energies(1))
    record.observe(0, energies(1))
    record.restore(before.notes() if other else None)
    assert (record.since, record.last) == (None, None)
    found = record.observe(50, energies(2))
    assert (found.difference, found.since) == (0, 50)


def test_a_checkpoint_is_saved_every_hour_by_default() -> None:
    assert CheckpointConfig().minutes == 60

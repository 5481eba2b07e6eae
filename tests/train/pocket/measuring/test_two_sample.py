"""The two-sample test: it sees dirt, is blind to sharpness, and cannot tell data from data."""

import pytest
import torch
from torch import Tensor

from train.pocket.dataset import HELD_OUT_SEED
from train.pocket.measuring.blur import blur
from train.pocket.measuring.check_reader import specked
from train.pocket.measuring.reader.reading import Reader
from train.pocket.measuring.two_sample import _Discriminant, two_sample_accuracy

from .reader.tiny import rendered_people, untrained_network

PEOPLE = 32


@pytest.fixture(scope="module")
def reader() -> Reader:
    """An untrained one: random features of a CNN, so that the test shows what the test itself can do."""
    return Reader(untrained_network())


@pytest.fixture(scope="module")
def futures() -> tuple[Tensor, Tensor]:
    people = rendered_people(HELD_OUT_SEED, PEOPLE)
    # What a VAE does: renders are sharper than anything that is compared.
    return blur(people.others, 0.5), blur(people.clips, 0.5)


def accuracy(made: Tensor, real: Tensor, reader: Reader) -> tuple[float, float, float]:
    found = two_sample_accuracy(made, real, torch.Generator().manual_seed(0), reader)
    return found.low, found.mean, found.high


def test_data_cannot_be_told_from_data(futures: tuple[Tensor, Tensor], reader: Reader) -> None:
    low, _, high = accuracy(*futures, reader)
    assert low <= 0.5 <= high


@pytest.mark.parametrize("sharper", [False, True])
def test_sharpness_alone_says_little(futures: tuple[Tensor, Tensor], reader: Reader, sharper: bool) -> None:
    made, real = futures
    changed = (made + 0.5 * (made - blur(made, 1.0))).clamp(0, 1) if sharper else blur(made, 0.5)
    assert accuracy(changed, real, reader)[1] < 0.66


def test_more_specks_are_seen_better(futures: tuple[Tensor, Tensor], reader: Reader) -> None:
    made, real = futures
    few, many = (accuracy(specked(made, count), real, reader) for count in (2, 16))
    assert many[0] > 0.75
    assert many[1] > few[1]


def test_the_discriminant_is_fishers() -> None:
    """Two Gaussians with a common covariance: the weights are those of the covariance, the accuracy Phi(d / 2)."""
    generator = torch.Generator().manual_seed(0)
    count, size = 4000, 6
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5 + torch.eye(size)
    shift = torch.randn(size, generator=generator, dtype=torch.float64)
    sides = torch.randn(2, count, size, generator=generator, dtype=torch.float64) @ root.T
    sides[0] += shift
    found = _Discriminant.fitted(sides, torch.zeros(1, size, dtype=torch.float64))
    fresh = torch.randn(2, count, size, generator=generator, dtype=torch.float64) @ root.T
    fresh[0] += shift
    scores = found.score(fresh)
    correct = ((scores[0] > 0).double().mean() + (scores[1] <= 0).double().mean()) / 2
    distance = (shift @ torch.linalg.solve(root @ root.T, shift)).sqrt()
    best = 0.5 * (1 + torch.erf(distance / 8**0.5))
    assert best - 0.05 < correct < best + 0.02


def test_the_discriminant_ignores_what_sharpness_changes() -> None:
    """The sides differ only in a feature that sharpness changes too, and in one that it does not change."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    sides[0, :, 0] += 3
    sides[0, :, 1] += 0.5
    found = _Discriminant.fitted(sides, torch.tensor([[3.0, 0, 0, 0], [-3, 0, 0, 0]], dtype=torch.float64))
    assert found.weights[0].abs() < 0.1 * found.weights[1].abs()


def test_unequal_and_few_clips_are_refused(futures: tuple[Tensor, Tensor], reader: Reader) -> None:
    made, real = futures
    for pair in ((made[:7], real[:7]), (made[:9], real[:10]), (made[:, :6], real[:, :6])):
        with pytest.raises(ValueError, match="at least 8"):
            two_sample_accuracy(*pair, torch.Generator(), reader)

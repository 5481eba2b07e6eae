"""The data of the ring and the exact distance from them."""

import pytest
import torch

from benchmarks.ring_world import (
    MODES,
    STD,
    centres,
    distance_to_data,
    labelled,
    learn_teacher,
    mean_distance,
    sample_data,
    sample_labels,
    sample_of,
)
from magicdistill_core.metrics.distances import energy_distance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [0.0, 0.3, 4.0])
def test_the_mean_length_of_a_normal_vector(length: float) -> None:
    """Against random vectors, and at 0 against the mean of Rayleigh's distribution."""
    vectors = torch.tensor([length, 0.0]) + 0.2 * torch.randn(400_000, 2, generator=generator())
    mean = mean_distance(torch.tensor(length**2), 0.2)
    torch.testing.assert_close(mean, vectors.norm(dim=1).mean(), atol=1e-3, rtol=0)
    if not length:
        torch.testing.assert_close(mean, torch.tensor(0.2 * (torch.pi / 2) ** 0.5))


def test_the_distance_agrees_with_two_sets_of_samples() -> None:
    x, data = 1.1 * sample_data(3000, generator(1)), sample_data(6000, generator(2))
    assert distance_to_data(x, centres()) == pytest.approx(energy_distance(x, data), rel=0.1)


def test_samples_of_the_data_have_distance_zero() -> None:
    distances = [distance_to_data(sample_data(1000, generator(seed)), centres()) for seed in range(10)]
    assert max(map(abs, distances)) < 0.01
    assert distance_to_data(sample_data(1000, generator(0)) * 0.9, centres()) > 0.02


def test_a_label_is_two_opposite_gaussians() -> None:
    labels = sample_labels(2000, 4, generator())
    points = sample_of(labels, generator(1))
    modes = torch.cdist(points, centres()).argmin(dim=1)
    assert (modes % 4 == labels.argmax(dim=1)).all()
    assert modes.bincount(minlength=MODES).min() > 200
    assert (points - centres()[modes]).std() == pytest.approx(STD, rel=0.05)


def test_the_teacher_obeys_labels_and_knows_their_absence() -> None:
    """A noised point between two Gaussians: the label decides from which one it comes, without a label both may be."""
    teacher = learn_teacher(updates=1500, width=64, classes=4)
    between, sigma = (0.5 * centres()[:2].mean(dim=0))[None], torch.tensor([0.5])

    def estimate(labels: torch.Tensor) -> torch.Tensor:
        return between - 0.5 * labelled(teacher, labels)(between, sigma)

    zero, one, none = (
        torch.cdist(estimate(labels[None]), centres())[0] for labels in (*torch.eye(4)[:2], torch.zeros(4))
    )
    assert zero.argmin() == 0
    assert one.argmin() == 1
    assert none[0] > zero[0] + 0.1
    assert none[1] > one[1] + 0.1

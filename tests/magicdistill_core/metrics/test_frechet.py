import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from magicdistill_core.metrics.frechet import frechet_distance, halves_distance


def by_definition(x: Tensor, y: Tensor) -> float:
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator)
    x = torch.randn(200, 12, generator=generator) @ mixing
    return x, torch.randn(150, 12, generator=generator) + 0.5


def test_equals_the_definition(sets: tuple[Tensor, Tensor]) -> None:
    assert frechet_distance(*sets) == pytest.approx(by_definition(*sets), rel=1e-8)


def test_equals_torch_fidelity(sets: tuple[Tensor, Tensor]) -> None:
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [metric.fid_features_to_statistics(some) for some in sets]
    expected = metric.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "other"), [(5, 7), (5, 150), (200, 4)])
def test_fewer_vectors_than_features(sets: tuple[Tensor, Tensor], count: int, other: int) -> None:
    x, y = sets[0][:count], sets[1][:other]
    # The root of a singular matrix is less exact than the distance itself.
    assert frechet_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-5)


def test_of_two_normal_distributions_is_known() -> None:
    x = torch.tensor([[-1.0], [1.0]]).repeat(500, 1)  # deviation 1
    y = 5 + 3 * x
    assert frechet_distance(x, y) == pytest.approx(25 + (3 - 1) ** 2, rel=2e-3)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_halves_of_one_set_are_nearer_than_another_set(sets: tuple[Tensor, Tensor]) -> None:
    floor = halves_distance(sets[0], torch.Generator().manual_seed(1))
    assert 0 < floor < frechet_distance(*sets)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.zeros(5, 4)),
        (torch.full((5, 3), torch.nan), torch.zeros(5, 3)),
    ],
)
def test_unusable_sets_are_refused(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Two sets|not finite"):
        frechet_distance(x, y)

"""Every matching objective moves a generator towards a known distribution, and the identity moves nothing."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.ring import METHODS, Method, Run, measured, sample_data, teacher
from magicdistill_core.flow import add_noise

UPDATES = 100


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distances(method: Method) -> tuple[float, float]:
    run = Run(method, seed=0, updates=UPDATES, rate=1e-3)
    before = run.distance()
    for number in range(UPDATES):
        run.round(number)
    return before, run.distance()


def test_the_teacher_is_the_exact_velocity() -> None:
    """No small change of it lowers the flow-matching loss, and its many steps give the data."""
    generator = torch.Generator().manual_seed(0)
    z, eps = sample_data(50_000, generator), torch.randn(50_000, 2, generator=generator)
    sigma = torch.rand(50_000, generator=generator) * 0.96 + 0.02
    x = add_noise(z, eps, sigma)
    exact = teacher(x, sigma)
    best = (exact - (eps - z)).square().mean()
    for changed in (1.02 * exact, 0.98 * exact, exact + 0.05):
        assert (changed - (eps - z)).square().mean() > best
    assert measured(teacher, 60) < 0.005 < 0.2 < measured(teacher, 4)


@pytest.mark.parametrize("name", ["w2s", "w2s, unnormalised", "w2s, supervised", "dmd", "dmd2", "one_step"])
def test_a_method_comes_nearer_to_the_data(name: str) -> None:
    before, after = distances(METHODS[name])
    assert after < 0.6 * before


def test_a_weak_equal_to_strong_moves_nothing() -> None:
    before, after = distances(Method(a_weak=1.0))
    assert after == before

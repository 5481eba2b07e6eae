"""The energy score against its definition, and its properness on Gaussians."""

import pytest
import torch

from magicdistill_core.metrics import energy_score
from magicdistill_core.metrics.energy_score import energy_scores


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_is_its_definition() -> None:
    samples, truths = normal(3, 4, 2, 5, seed=0), normal(3, 2, 5, seed=1)
    scores = energy_scores(samples, truths)
    for x, y, score in zip(samples.double(), truths.double(), scores, strict=True):
        error = sum(float((a - y).norm()) for a in x) / 4
        pairs = sum(float((x[i] - x[j]).norm()) for i in range(4) for j in range(4) if i != j) / 12
        assert float(score) == pytest.approx((error - 0.5 * pairs) / 10**0.5, rel=1e-6)


def test_samples_equal_to_the_truth_score_zero() -> None:
    truths = normal(2, 7, seed=0)
    assert energy_scores(truths[:, None].expand(-1, 3, -1), truths).tolist() == [0, 0]


def test_the_unit_is_that_of_the_samples_at_every_size() -> None:
    """Samples that miss the truth by 0.3 everywhere score 0.3, for few elements and for many."""
    for size in (4, 4000):
        truth = torch.zeros(1, size)
        assert float(energy_scores(truth[:, None].expand(-1, 2, -1) + 0.3, truth)) == pytest.approx(0.3)


def test_the_distribution_of_the_truths_has_the_lowest_score() -> None:
    """Truths are N(0, 1). Samples with another mean, a wider or a narrower spread, or no spread at all are worse."""
    truths = normal(4000, 3, seed=0)
    noise = normal(4000, 4, 3, seed=1)
    true = energy_scores(noise, truths)
    others = {"shifted": noise + 0.5, "wide": 1.5 * noise, "narrow": 0.5 * noise, "mean": 0 * noise}
    for name, samples in others.items():
        worse = energy_scores(samples, truths) - true
        assert worse.mean() > 5 * worse.std() / len(worse) ** 0.5, name


def test_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, truths = normal(7, 3, 10, seed=4), normal(7, 10, seed=5)
    whole = energy_scores(samples, truths)
    monkeypatch.setattr(energy_score, "_GROUP_NUMBERS", 61)  # two truths at a time
    assert torch.equal(energy_scores(samples, truths), whole)


def test_the_score_is_unbiased_in_the_number_of_samples() -> None:
    truths, noise = normal(6000, 2, seed=2), normal(6000, 8, 2, seed=3)
    few, many = energy_scores(noise[:, :2], truths), energy_scores(noise, truths)
    assert abs((few - many).mean()) < 4 * (few - many).std() / len(few) ** 0.5


@pytest.mark.parametrize("shapes", [((3, 1, 4), (3, 4)), ((3, 2, 4), (3, 5)), ((3, 2, 4), (2, 4)), ((3,), (3,))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple) -> None:
    with pytest.raises(ValueError, match="at least two samples for each truth"):
        energy_scores(torch.zeros(shapes[0]), torch.zeros(shapes[1]))

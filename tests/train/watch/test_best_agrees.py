"""The measure of the best checkpoint agrees with the quality of samples, where the distance of the scores does not.

A stand-in for a run whose batch is small and whose fake score is slow, so that it oscillates: weak-to-strong matching
of a four-step generator in the plane. The data are eight Gaussians, of which the exact velocity is known. So the
teacher is exact. The quality of a checkpoint is the energy distance of many samples from the data. Several runs with
different noise are trained at once, as one stack of networks.
"""

from dataclasses import dataclass
from statistics import fmean, median

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from magicdistill_core.flow import Velocity, few_step_sigmas, sample_euler
from magicdistill_core.metrics.distances import energy_distance
from magicdistill_core.metrics.energy_score import energy_scores
from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss, per_sample_mean
from magicdistill_core.objectives.noise_levels import sample_sigma
from magicdistill_core.objectives.rollout import rollout
from train.watch.best import EnergyRecord

SHIFT, ROUNDS, EVERY, WINDOW, FAKE_UPDATES, A_WEAK = 5.0, 400, 40, 20, 5, 0.25
RUNS, BATCH, CLIPS, SEEDS, MANY = 16, 4, 96, 4, 1000
# The fake score learns ten times as slowly as the generator.
RATE, FAKE_RATE = 1e-3, 1e-4
ANGLES = torch.arange(8) * (torch.pi / 4)
CENTRES, STD = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.1
SIGMAS = few_step_sigmas(4, SHIFT)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(count: int, generator: torch.Generator) -> Tensor:
    modes = torch.randint(len(CENTRES), (count,), generator=generator)
    return CENTRES[modes] + STD * torch.randn(count, 2, generator=generator)


def teacher(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact velocity `E[eps - z | x]` of the data."""
    sigma = sigma[:, None]
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    away = x[:, None] - (1 - sigma)[:, None] * CENTRES
    weights = torch.softmax(-away.square().sum(2) / (2 * variance), dim=1)[:, :, None]
    z = CENTRES + ((1 - sigma) * STD**2 / variance)[:, None] * away
    eps = (sigma / variance)[:, None] * away
    return (weights * (eps - z)).sum(1)


class Corrections(nn.Module):
    """One small network for each run that is added to the teacher's velocity; zero at the start."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        sizes = ((3, width), (width, width), (width, 2))
        generator = seeded(seed)
        draws = [torch.randn(RUNS, *size, generator=generator) / size[0] ** 0.5 for size in sizes]
        self.weights = nn.ParameterList([*draws[:2], 0 * draws[2]])
        self.biases = nn.ParameterList(torch.zeros(RUNS, 1, size[1]) for size in sizes)

    def on_teacher(self, weight: float) -> Velocity:
        """The velocity of points `[RUNS * B, 2]`; the points of a run are neighbours."""

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            y = torch.cat([x, sigma[:, None]], dim=1).unflatten(0, (RUNS, -1))
            for number, (matrix, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                y = torch.baddbmm(bias, y, matrix)
                y = nn.functional.silu(y) if number < 2 else y
            return teacher(x, sigma) + weight * y.flatten(0, 1)

        return velocity


@dataclass(frozen=True)
class Checkpoint:
    update: int
    score: float  # energy score of the validation
    distance: float  # median |r - f|
    quality: float  # energy distance of many samples from the data


def train(seed: int) -> list[list[Checkpoint]]:
    """The checkpoints of each run."""
    draws, student, branch = seeded(seed), Corrections(seed), Corrections(seed + 1)
    generator, real, fake = student.on_teacher(1.0), branch.on_teacher(A_WEAK), branch.on_teacher(1.0)
    learns = torch.optim.Adam(student.parameters(), RATE, betas=(0.0, 0.999))
    follows = torch.optim.Adam(branch.parameters(), FAKE_RATE, betas=(0.0, 0.999))
    validation = seeded(99)
    truths, noise = data(CLIPS, validation), torch.randn(CLIPS * SEEDS, 2, generator=validation)
    many, plenty = torch.randn(MANY, 2, generator=validation), data(MANY, validation)
    records = [EnergyRecord("stand-in") for _ in range(RUNS)]
    runs: list[list[Checkpoint]] = [[] for _ in range(RUNS)]
    distances: list[Tensor] = []

    def fresh() -> tuple[Tensor, Tensor]:
        return torch.randn(RUNS * BATCH, 2, generator=draws), sample_sigma(RUNS * BATCH, SHIFT, draws)

    def samples() -> Tensor:
        exit_index = int(torch.randint(4, (), generator=draws))
        return rollout(generator, fresh()[0], SIGMAS, exit_index, "euler", [])

    @torch.no_grad()
    def measure(update: int) -> None:
        made = sample_euler(generator, noise.repeat(RUNS, 1), SIGMAS).unflatten(0, (RUNS, CLIPS, SEEDS))
        more = sample_euler(generator, many.repeat(RUNS, 1), SIGMAS).unflatten(0, (RUNS, MANY))
        for run, (record, checkpoints) in enumerate(zip(records, runs, strict=True)):
            score = record.observe(update, energy_scores(made[run], truths).tolist()).energy
            distance = median(float(values[run]) for values in distances[-WINDOW:])
            checkpoints.append(Checkpoint(update, score, distance, energy_distance(more[run], plenty)))

    for number in range(1, ROUNDS + 1):
        for _ in range(FAKE_UPDATES):
            with torch.no_grad():
                x_hat = samples()
            follows.zero_grad()
            fake_loss(x_hat, *fresh(), fake).backward()
            follows.step()
        learns.zero_grad()
        x_hat, (eps, sigma) = samples(), fresh()
        generator_loss(x_hat, eps, sigma, real, fake, normalize=True).loss.backward()
        learns.step()
        with torch.no_grad():
            x = (1 - sigma[:, None]) * x_hat + sigma[:, None] * eps
            distances.append(per_sample_mean((real(x, sigma) - fake(x, sigma)).abs()).view(RUNS, BATCH).mean(1))
        if number % EVERY == 0:
            measure(number)
    return runs


@pytest.fixture(scope="module")
def runs() -> list[list[Checkpoint]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = train(seed=0)
    torch.set_num_threads(threads)
    return found


def mean_quality(picks: list[Checkpoint]) -> float:
    return fmean(pick.quality for pick in picks)


def test_the_energy_score_picks_good_checkpoints_and_the_distance_of_the_scores_ruins(
    runs: list[list[Checkpoint]],
) -> None:
    """Also if only checkpoints from the peak of the distance on count: before it, the branch has learned nothing."""
    by_score = mean_quality([min(run, key=lambda checkpoint: checkpoint.score) for run in runs])
    lowest = mean_quality([min(run, key=lambda checkpoint: checkpoint.distance) for run in runs])
    after_peak = []
    for run in runs:
        peak = max(run, key=lambda checkpoint: checkpoint.distance).update
        after_peak.append(min((c for c in run if c.update >= peak), key=lambda checkpoint: checkpoint.distance))
    best = mean_quality([min(run, key=lambda checkpoint: checkpoint.quality) for run in runs])
    assert by_score < 1.4 * best
    assert by_score < 0.8 * lowest
    assert by_score < 0.8 * mean_quality(after_peak)
    # What the distance picks is about as bad as an average checkpoint.
    assert lowest > 0.8 * mean_quality([checkpoint for run in runs for checkpoint in run])


def test_the_energy_score_orders_checkpoints_as_their_quality_does(runs: list[list[Checkpoint]]) -> None:
    checkpoints = [checkpoint for run in runs for checkpoint in run]
    quality = [checkpoint.quality for checkpoint in checkpoints]
    assert spearmanr([checkpoint.score for checkpoint in checkpoints], quality).statistic > 0.65
    assert spearmanr([checkpoint.distance for checkpoint in checkpoints], quality).statistic < 0.3

"""The objectives held against a known distribution: eight Gaussians on a ring, whose exact velocity is the teacher.

A four-step generator starts as the teacher, whose own four Euler steps land beside the Gaussians, and is distilled by
one method; what counts is the energy distance of its samples from the data. `python -m benchmarks.ring` trains every
method for long and writes the curves (JSON) and a plot.
"""

import argparse
import copy
import json
import logging
from dataclasses import dataclass
from math import pi
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from magicdistill_core.flow import Velocity, few_step_sigmas, sample_euler
from magicdistill_core.metrics.distances import energy_distance
from magicdistill_core.objectives.adversarial import adversarial_gradient, discriminator_loss
from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss
from magicdistill_core.objectives.noise_levels import sample_sigma
from magicdistill_core.objectives.rollout import rollout
from magicdistill_core.objectives.supervision import supervision_loss

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
MODES, RADIUS, STD = 8, 2.0, 0.1
SHIFT, BATCH, FAKE_UPDATES = 5.0, 256, 5
# Samples of which the distance is measured.
MEASURED = 2000
AVERAGING, STUDENT_RATE = 0.95, 5e-4
# In which the noise level is given: the generator's few levels must be well apart.
_WAVES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Method:
    """What the generator learns from.

    Attributes:
        steps: model calls of the generator.
        a_weak: weight of the fake branch in the real score; 0 is DMD.
        normalize: whether the gradient is normalised.
        supervision: weight of the ground-truth supervision.
        adversarial: weight of the discriminator.
        pairs: weights of the distance to the teacher's many steps and of matching, each from the first to the last.
    """

    steps: int = 4
    a_weak: float = 0.25
    normalize: bool = True
    supervision: float = 0.0
    adversarial: float = 0.0
    pairs: tuple[tuple[float, float], tuple[float, float]] | None = None


METHODS = {
    "w2s": Method(),
    "w2s, a_weak 0.5": Method(a_weak=0.5),
    "w2s, a_weak 0.75": Method(a_weak=0.75),
    "w2s, unnormalised": Method(normalize=False),
    "w2s, supervised": Method(supervision=0.25),
    "dmd": Method(a_weak=0.0),
    "dmd2": Method(a_weak=0.0, adversarial=0.02),
    "one_step": Method(steps=1, pairs=((1.0, 0.25), (0.25, 1.0))),
    "w2s, one step without pairs": Method(steps=1),
}


def centres() -> Tensor:
    """`[8, 2]`."""
    angles = torch.arange(MODES) * (2 * pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def sample_data(count: int, generator: torch.Generator) -> Tensor:
    """`[count, 2]`."""
    modes = torch.randint(MODES, (count,), generator=generator)
    return centres()[modes] + STD * torch.randn(count, 2, generator=generator)


def teacher(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact velocity `E[eps - z | x_sigma]` of the data."""
    s = sigma[:, None].to(x)
    scale, middle = 1 - s, centres()
    variance = (scale * STD) ** 2 + s**2
    offsets = x[:, None] - scale[:, None] * middle
    weights = torch.softmax(-offsets.square().sum(-1) / (2 * variance), dim=1)
    z = (weights[..., None] * (middle + (scale * STD**2 / variance)[:, None] * offsets)).sum(1)
    return (x - scale * z) / s - z


class Correction(nn.Module):
    """What is added to the exact velocity: at first nothing."""

    def __init__(self, outputs: int = 2, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 + 2 * len(_WAVES), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`[B, outputs]`."""
        phases = 2 * pi * sigma[:, None].to(x) * torch.tensor(_WAVES)
        answer: Tensor = self.head(self.body(torch.cat([x, phases.sin(), phases.cos()], dim=1)))
        return answer


def corrected(correction: Correction, weight: float = 1.0) -> Velocity:
    """`theta + weight * zeta`."""
    return lambda x, sigma: teacher(x, sigma) + weight * correction(x, sigma)


class Run:
    """One generator under one method."""

    def __init__(self, method: Method, seed: int, updates: int, rate: float = STUDENT_RATE) -> None:
        self.method, self.updates, self.rate = method, updates, rate
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student, self.fake, self.judge = Correction(), Correction(), Correction(outputs=1)
        # What is measured: the last weights jump about.
        self.average = copy.deepcopy(self.student)
        self.sigmas = few_step_sigmas(method.steps, SHIFT)
        self.optimizers = {
            "student": torch.optim.Adam(self.student.parameters(), lr=rate, betas=(0.0, 0.999)),
            "fake": torch.optim.Adam(self.fake.parameters(), lr=1e-3, betas=(0.0, 0.999)),
            "judge": torch.optim.Adam(self.judge.parameters(), lr=1e-3, betas=(0.0, 0.999)),
        }

    def _noise(self) -> Tensor:
        return torch.randn(BATCH, 2, generator=self.generator)

    def _level(self) -> Tensor:
        return sample_sigma(BATCH, SHIFT, self.generator)

    def _rollout(self, noise: Tensor) -> Tensor:
        exit_index = int(torch.randint(self.method.steps, (), generator=self.generator))
        return rollout(corrected(self.student), noise, self.sigmas, exit_index, "euler", [])

    def _step(self, name: str, loss: Tensor) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def _critic(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.judge(x, sigma)[:, 0]

    def round(self, number: int) -> None:
        """The fake updates, the discriminator's, the generator's."""
        method = self.method
        for _ in range(FAKE_UPDATES):
            with torch.no_grad():
                x_hat = self._rollout(self._noise())
            self._step("fake", fake_loss(x_hat, self._noise(), self._level(), corrected(self.fake)))
        if method.adversarial:
            with torch.no_grad():
                x_hat = self._rollout(self._noise())
            z = sample_data(BATCH, self.generator)
            result = discriminator_loss(
                self._critic, z, x_hat, self._noise(), self._level(), r1=10.0, perturbation=0.1 * self._noise()
            )
            self._step("judge", result.loss)
        for group in self.optimizers["student"].param_groups:
            # Falls to nothing, so that the fake score catches up.
            group["lr"] = self.rate * (1 - number / self.updates)
        self._step("student", self._generator_loss(number))
        with torch.no_grad():
            for mean, own in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(own, 1 - AVERAGING)

    def _generator_loss(self, number: int) -> Tensor:
        method, noise = self.method, self._noise()
        x_hat = self._rollout(noise)
        real, fake = corrected(self.fake, method.a_weak), corrected(self.fake)
        loss = generator_loss(x_hat, self._noise(), self._level(), real, fake, normalize=method.normalize).loss
        if method.pairs is not None:
            done = number / max(1, self.updates - 1)
            pair_weight, matching_weight = (first + (last - first) * done for first, last in method.pairs)
            target = sample_euler(teacher, noise, few_step_sigmas(28, SHIFT))
            loss = matching_weight * loss + pair_weight * F.mse_loss(x_hat, target)
        if method.supervision:
            nodes = torch.randint(method.steps, (BATCH,), generator=self.generator)
            z = sample_data(BATCH, self.generator)
            loss = loss + method.supervision * supervision_loss(
                corrected(self.student), z, self._noise(), self.sigmas[nodes], distance="huber", xi=1e-3
            )
        if method.adversarial:
            _, gradient = adversarial_gradient(self._critic, x_hat, self._noise(), self._level())
            loss = loss + method.adversarial * (x_hat * gradient).sum()
        return loss

    @torch.no_grad()
    def distance(self) -> float:
        """Energy distance of the generator's samples from the data."""
        return measured(corrected(self.average), self.method.steps)


@torch.no_grad()
def measured(velocity: Velocity, steps: int) -> float:
    """Energy distance of a velocity's Euler samples from the data; the same noise and data at every call."""
    generator = torch.Generator().manual_seed(12345)
    noise = torch.randn(MEASURED, 2, generator=generator)
    return energy_distance(
        sample_euler(velocity, noise, few_step_sigmas(steps, SHIFT)), sample_data(MEASURED, generator)
    )


def curve(method: Method, seed: int, updates: int, every: int) -> list[tuple[int, float]]:
    """`(generator updates, energy distance)` while a method trains."""
    run = Run(method, seed, updates)
    points = [(0, run.distance())]
    for number in range(updates):
        run.round(number)
        if (number + 1) % every == 0:
            points.append((number + 1, run.distance()))
    return points


def write_results(curves: dict[str, list[tuple[int, float]]], results: Path, plot: Path) -> None:
    """The curves as JSON, and drawn over the updates beside what the teacher reaches by itself."""
    levels = {f"teacher, {steps} steps": measured(teacher, steps) for steps in (4, 28)}
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(
        json.dumps({"measure": "energy distance to data", "teacher": levels, "curves": curves}, indent=1)
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.axhline(levels["teacher, 4 steps"], color="grey", linestyle="--", label="teacher, 4 steps")
    axes.set(xlabel="generator updates", ylabel="energy distance to data", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(plot, dpi=120)


def main() -> None:
    """Train the methods and write their curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=f"of: {', '.join(METHODS)}")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--every", type=int, default=100, help="updates from one point of a curve to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "ring.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "ring.png")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    curves = {}
    for name in arguments.methods:
        curves[name] = curve(METHODS[name], arguments.seed, arguments.updates, arguments.every)
        logger.info("%s: %s", name, ", ".join(f"{distance:.3f}" for _, distance in curves[name]))
        write_results(curves, arguments.results, arguments.plot)


if __name__ == "__main__":
    main()

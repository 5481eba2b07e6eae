"""Test the objectives on a known distribution: a small network learns eight Gaussians on a ring.

The teacher is trained by flow matching; with only four Euler steps its samples miss the Gaussians. A four-step
generator starts from the teacher's weights and is distilled by one method. The result is the energy distance of its
samples from the data. The fake score is a low-rank branch on the teacher, as in the trainer.

`python -m benchmarks.ring` trains every method for many updates and writes the curves (JSON) and a plot.
"""

import argparse
import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from magicdistill_core.flow import Velocity, few_step_sigmas, sample_euler
from magicdistill_core.objectives.adversarial import adversarial_gradient, discriminator_loss
from magicdistill_core.objectives.consistency import consistency_loss
from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss
from magicdistill_core.objectives.noise_levels import sample_sigma
from magicdistill_core.objectives.rollout import rollout
from magicdistill_core.objectives.supervision import supervision_loss

from .ring_world import (
    FAKE_UPDATES,
    ODE_STEPS,
    SHIFT,
    Branch,
    Network,
    learn_teacher,
    measured,
    sample_data,
)

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
HUBER_WIDTH = 1e-2
# Adam's decay rates.
BETAS = (0.0, 0.999)


@dataclass(frozen=True)
class Method:
    """A distillation method.

    Attributes:
        steps: model calls of the generator.
        consistent: whether the generator learns by consistency distillation. The other fields belong to distribution
            matching.
        a_weak: weight of the fake branch in the real score; 0 is DMD.
        normalize: whether the gradient is normalised.
        supervision: weight of the ground-truth supervision.
        adversarial: weight of the discriminator's loss.
        pairs: two pairs of weights (first update, last update), interpolated linearly: of the distance to the teacher's
            many-step samples, and of distribution matching. None uses matching alone.
        batch: number of samples of an update.
        student_rate: Adam's learning rate of the generator.
        fake_rate: Adam's learning rate of the fake branch and of the discriminator.
        epsilon: Adam's epsilon, for all networks.
    """

    steps: int = 4
    consistent: bool = False
    a_weak: float = 0.25
    normalize: bool = True
    supervision: float = 0.0
    adversarial: float = 0.0
    pairs: tuple[tuple[float, float], tuple[float, float]] | None = None
    batch: int = 128
    student_rate: float = 1e-4
    fake_rate: float = 1e-3
    epsilon: float = 1e-8


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
    "lcm": Method(consistent=True),
}


class Run:
    """The training of one generator with one method."""

    def __init__(self, method: Method, teacher: Network, seed: int, updates: int) -> None:
        self.method, self.teacher, self.updates = method, teacher, updates
        self.generator = torch.Generator().manual_seed(seed)
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.branch, self.discriminator = Branch(teacher), Network(outputs=1)
        self.sigmas = few_step_sigmas(method.steps, SHIFT)
        rates = {"student": method.student_rate, "branch": method.fake_rate, "discriminator": method.fake_rate}
        self.optimizers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), rate, BETAS, method.epsilon)
            for name, rate in rates.items()
        }

    def _noise(self) -> Tensor:
        return torch.randn(self.method.batch, 2, generator=self.generator)

    def _level(self) -> Tensor:
        return sample_sigma(self.method.batch, SHIFT, self.generator)

    def _data(self) -> Tensor:
        return sample_data(self.method.batch, self.generator)

    def _score(self, weight: float) -> Velocity:
        """Return the teacher with `weight` times the branch: `theta + weight * zeta`."""
        return lambda x, sigma: self.teacher(x, sigma, self.branch, weight)

    def _rollout(self, noise: Tensor) -> Tensor:
        exit_index = int(torch.randint(self.method.steps, (), generator=self.generator))
        return rollout(self.student, noise, self.sigmas, exit_index, "euler", [])

    def _step(self, name: str, loss: Tensor) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def _logits(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.discriminator(x, sigma)[:, 0]

    def round(self, number: int) -> None:
        """Make the fake updates, the discriminator update and the generator update of one round."""
        method = self.method
        for _ in range(0 if method.consistent else FAKE_UPDATES):
            with torch.no_grad():
                x_hat = self._rollout(self._noise())
            self._step("branch", fake_loss(x_hat, self._noise(), self._level(), self._score(1.0)))
        if method.adversarial:
            with torch.no_grad():
                x_hat = self._rollout(self._noise())
            z = self._data()
            result = discriminator_loss(
                self._logits, z, x_hat, self._noise(), self._level(), r1=10.0, perturbation=0.1 * self._noise()
            )
            self._step("discriminator", result.loss)
        self._step("student", self._consistency() if method.consistent else self._generator_loss(number))

    def _consistency(self) -> Tensor:
        """Return the loss of the trainer's method `lcm`; the student is its own target network."""
        sigmas = few_step_sigmas(ODE_STEPS, SHIFT)
        index = torch.randint(ODE_STEPS, (self.method.batch,), generator=self.generator)
        z = self._data()
        return consistency_loss(
            self.student, self.teacher, self.student, z, self._noise(), sigmas[index], sigmas[index + 1], HUBER_WIDTH
        )

    def _generator_loss(self, number: int) -> Tensor:
        method, noise = self.method, self._noise()
        x_hat = self._rollout(noise)
        real, fake = self._score(method.a_weak), self._score(1.0)
        loss = generator_loss(x_hat, self._noise(), self._level(), real, fake, normalize=method.normalize).loss
        if method.pairs is not None:
            done = number / max(1, self.updates - 1)
            pair_weight, matching_weight = (first + (last - first) * done for first, last in method.pairs)
            target = sample_euler(self.teacher, noise, few_step_sigmas(ODE_STEPS, SHIFT))
            loss = matching_weight * loss + pair_weight * F.mse_loss(x_hat, target)
        if method.supervision:
            indices = torch.randint(method.steps, (method.batch,), generator=self.generator)
            z = self._data()
            loss = loss + method.supervision * supervision_loss(
                self.student, z, self._noise(), self.sigmas[indices], distance="huber", xi=1e-3
            )
        if method.adversarial:
            _, gradient = adversarial_gradient(self._logits, x_hat, self._noise(), self._level())
            loss = loss + method.adversarial * (x_hat * gradient).sum()
        return loss

    @torch.no_grad()
    def distance(self) -> float:
        """Return the energy distance of the generator's samples from the data."""
        return measured(self.student, self.method.steps)


def curve(method: Method, teacher: Network, seed: int, updates: int, every: int) -> list[tuple[int, float]]:
    """Train with a method; return points `(generator updates, energy distance)`, one per `every` updates."""
    run = Run(method, teacher, seed, updates)
    points = [(0, run.distance())]
    for number in range(updates):
        run.round(number)
        if (number + 1) % every == 0:
            points.append((number + 1, run.distance()))
    return points


def write_results(curves: dict[str, list[tuple[int, float]]], teacher: Network, results: Path, plot: Path) -> None:
    """Write the curves as JSON, and a plot of them with the teacher's 4-step distance as a reference line."""
    levels = {f"teacher, {steps} steps": measured(teacher, steps) for steps in (4, ODE_STEPS)}
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
    """Run the command line: train the methods and write their curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--every", type=int, default=100, help="updates between two points of a curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "ring.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "ring.png")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    teacher, curves = learn_teacher(seed=arguments.seed), {}
    for name in arguments.methods:
        curves[name] = curve(METHODS[name], teacher, arguments.seed, arguments.updates, arguments.every)
        logger.info("%s: %s", name, ", ".join(f"{distance:.3f}" for _, distance in curves[name]))
        write_results(curves, teacher, arguments.results, arguments.plot)


if __name__ == "__main__":
    main()

"""Many trainings on the ring at once: the networks of all copies are stacked, so that one call computes all of them.

A copy of a stack makes the same random draws and the same updates as a `Run` of `benchmarks.ring` with its method and
seed. The copies of a stack may differ in the seed, in the weak weight, and in Adam's learning rates and epsilon. They
share the teacher. Only distribution matching is implemented, with or without ground-truth supervision.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.flow import Velocity, add_noise, few_step_sigmas, velocity_to_x0
from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss
from magicdistill_core.objectives.noise_levels import sample_sigma
from magicdistill_core.objectives.supervision import supervision_loss

from .ring import BETAS, Method
from .ring_world import (
    FAKE_UPDATES,
    INPUTS,
    SHIFT,
    Branch,
    Network,
    centres,
    distance_to_data,
    encode,
    sample_labels,
    sample_of,
)

# Number of samples for a distance, and the seed of their noise.
SAMPLES, NOISE_SEED = 1000, 12345


def shared_settings(method: Method) -> Method:
    """Return the method without the settings in which the copies of a stack may differ."""
    return replace(method, a_weak=0.0, student_rate=0.0, fake_rate=0.0, epsilon=0.0)


def stacked_velocity(tensors: Sequence[Tensor], labels: Tensor) -> Velocity:
    """Return the velocity of networks that are stacked.

    Args:
        tensors: for each layer its matrices `[C, in, out]`, then its biases `[C, 1, out]`.
        labels: one-hot labels `[C * B, classes]`.
    """

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        y = encode(torch.cat([x, labels], dim=1), sigma).unflatten(0, (len(tensors[0]), -1))
        for number in range(0, len(tensors), 2):
            y = torch.baddbmm(tensors[number + 1], F.silu(y) if number else y, tensors[number])
        return y.flatten(0, 1)

    return velocity


class StackedAdam:
    """Adam with beta1 = 0 for stacked parameters; each copy has its own learning rate and epsilon.

    Args:
        parameters: tensors `[C, ...]` of three axes, one entry per copy; `step` changes them in place.
        rates: the learning rates of the copies.
        epsilons: the epsilons of the copies.
    """

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float], epsilons: Sequence[float]) -> None:
        self.parameters, self.updates = parameters, 0
        self.rates = torch.tensor(rates)[:, None, None]
        self.epsilons = torch.tensor(epsilons)[:, None, None]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Update the parameters with the gradient of `loss`, a scalar."""
        self.updates += 1
        correction = 1 - BETAS[1] ** self.updates
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, square, gradient in zip(self.parameters, self.squares, gradients, strict=True):
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            length = (square / correction).sqrt_().add_(self.epsilons)
            parameter.sub_(gradient.div_(length).mul_(self.rates))


class Stack:
    """The trainings of several generators with distribution matching.

    Args:
        methods: the method of each copy; all must agree in their `shared_settings`.
        seeds: the seed of each copy.
        teacher: the frozen teacher of all copies.

    Raises:
        ValueError: if the methods differ in a setting that the copies share, or need what a stack cannot do.
    """

    def __init__(self, methods: Sequence[Method], seeds: Sequence[int], teacher: Network) -> None:
        kinds = {shared_settings(method) for method in methods}
        if len(kinds) != 1:
            raise ValueError(
                f"The methods of a stack differ in settings that all copies share: {kinds}. Train them in different "
                f"stacks."
            )
        self.method = methods[0]
        if self.method.consistent or self.method.adversarial or self.method.pairs:
            raise ValueError(
                f"A stack trains with distribution matching and supervision only, found {self.method}. Use "
                f"`benchmarks.ring.Run`."
            )
        self.copies, self.teacher = len(methods), teacher
        self.layers = [layer for layer in teacher.layers if isinstance(layer, nn.Linear)]
        self.classes = self.layers[0].in_features - INPUTS
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.sigmas = few_step_sigmas(self.method.steps, SHIFT)
        self.weak = torch.tensor([method.a_weak for method in methods])[:, None, None]
        self.student = [
            tensor.detach().expand(self.copies, *tensor.shape).clone().requires_grad_()
            for layer in self.layers
            for tensor in (layer.weight.T, layer.bias[None])
        ]
        self.branch = self.first_branches(seeds)
        self.start_optimizers(methods)

    def start_optimizers(self, methods: Sequence[Method]) -> None:
        """Make new optimizers for `student` and `branch`."""
        rates, epsilons = [method.student_rate for method in methods], [method.epsilon for method in methods]
        self.student_optimizer = StackedAdam(self.student, rates, epsilons)
        self.branch_optimizer = StackedAdam(self.branch, [method.fake_rate for method in methods], epsilons)

    def first_branches(self, seeds: Sequence[int]) -> list[Tensor]:
        """Return the first weights of all branches: per layer `down` `[C, in, rank]` and `up` `[C, rank, out]`."""
        branches = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                branches.append(Branch(self.teacher))
        return [
            torch.stack([getattr(branch, name)[number].detach().T for branch in branches]).requires_grad_()
            for number in range(len(self.layers))
            for name in ("down", "up")
        ]

    def draw(self, function: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Call `function` with the random numbers of each copy and return all results: `[C * B, ...]`."""
        return torch.cat([function(generator) for generator in self.generators])

    def noise(self) -> Tensor:
        return self.draw(lambda generator: torch.randn(self.method.batch, 2, generator=generator))

    def level(self) -> Tensor:
        return self.draw(lambda generator: sample_sigma(self.method.batch, SHIFT, generator))

    def data_of(self, labels: Tensor) -> Tensor:
        """Return samples of the data `[C * B, 2]` with these one-hot labels `[C * B, classes]`."""
        groups = zip(labels.unflatten(0, (self.copies, -1)), self.generators, strict=True)
        return torch.cat([sample_of(group, generator) for group, generator in groups])

    def labels(self) -> Tensor:
        """Return random labels `[C * B, classes]` for samples of the generator."""
        return self.draw(lambda generator: sample_labels(self.method.batch, self.classes, generator))

    def generate(self, labels: Tensor, rows: Tensor | None = None) -> Velocity:
        """Return the velocity of the generators.

        Args:
            labels: one-hot labels `[R * B, classes]`.
            rows: numbers of the R copies that are called; None for all.
        """
        return stacked_velocity(self.student if rows is None else [tensor[rows] for tensor in self.student], labels)

    def score(self, weight: Tensor | float, labels: Tensor) -> Velocity:
        """Return the velocity of the teacher plus `weight` times each copy's branch.

        Args:
            weight: one weight for all copies, or one per copy `[C, 1, 1]`.
            labels: one-hot labels `[C * B, classes]`.
        """
        tensors = []
        for layer, down, up in zip(self.layers, self.branch[::2], self.branch[1::2], strict=True):
            # One product with the sum of the matrices is faster than products with each of them.
            tensors += [layer.weight.T + weight * (down @ up), layer.bias.expand(self.copies, 1, -1)]
        return stacked_velocity(tensors, labels)

    def exits(self) -> Tensor:
        """Draw each copy's exit index `[C]`: the level at which its rollout ends."""
        return self.draw(lambda generator: torch.randint(self.method.steps, (1,), generator=generator))

    def rollout(self, noise: Tensor, exits: Tensor, labels: Tensor) -> Tensor:
        """Return the x0 estimates of the generators `[C * B, 2]`; only the last call of each copy has a gradient.

        Args:
            noise: standard normal noise `[C * B, 2]`.
            exits: the index of each copy's last level, `[C]`.
            labels: one-hot labels `[C * B, classes]`.
        """
        x = self.descend(noise, exits, labels)
        sigma = self.sigmas[exits].repeat_interleave(self.method.batch)
        return velocity_to_x0(x, self.generate(labels)(x, sigma), sigma)

    @torch.no_grad()
    def descend(self, noise: Tensor, exits: Tensor, labels: Tensor) -> Tensor:
        """Return the latents `[C * B, 2]` of Euler sampling at each copy's exit level; arguments as in `rollout`."""
        x = noise.unflatten(0, (self.copies, -1)).clone()
        labels = labels.unflatten(0, (self.copies, -1))
        for step in range(int(exits.max())):
            rows = (exits > step).nonzero()[:, 0]
            points, sigma = x[rows].flatten(0, 1), self.sigmas[step]
            velocity = self.generate(labels[rows].flatten(0, 1), rows)(points, sigma.expand(len(points)))
            x[rows] = (points + (self.sigmas[step + 1] - sigma) * velocity).unflatten(0, (len(rows), -1))
        return x.flatten(0, 1)

    def round(self, number: int) -> None:
        """Make the fake updates and the generator update of round `number`."""
        for _ in range(FAKE_UPDATES):
            # A loss is a mean over all copies; times their number, its gradient is that of each copy's own mean.
            self.branch_optimizer.step(self.copies * self.fake_loss())
        self.student_optimizer.step(self.copies * self.generator_loss(number))

    def fake_loss(self) -> Tensor:
        labels = self.labels()
        with torch.no_grad():
            x_hat = self.rollout(self.noise(), self.exits(), labels)
        return fake_loss(x_hat, self.noise(), self.level(), self.score(1.0, labels))

    def generator_loss(self, number: int) -> Tensor:
        labels = self.labels()
        x_hat = self.rollout(self.noise(), self.exits(), labels)
        real, fake = self.score(self.weak, labels), self.score(1.0, labels)
        loss = generator_loss(x_hat, self.noise(), self.level(), real, fake, normalize=self.method.normalize).loss
        return loss + self.supervision() if self.method.supervision else loss

    def supervision(self) -> Tensor:
        steps = self.method.steps
        indices = self.draw(lambda generator: torch.randint(steps, (self.method.batch,), generator=generator))
        labels = self.labels()
        return self.method.supervision * supervision_loss(
            self.generate(labels), self.data_of(labels), self.noise(), self.sigmas[indices], distance="huber", xi=1e-3
        )

    @torch.no_grad()
    def samples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` samples of each generator `[C * count, 2]` and their labels. The noise is always the same."""
        classes = max(1, self.classes)
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(NOISE_SEED))
        labels = torch.eye(classes, self.classes).repeat_interleave(count // classes, dim=0).repeat(self.copies, 1)
        exits = torch.full((self.copies,), self.method.steps)
        return self.descend(noise.repeat(self.copies, 1), exits, labels), labels

    def distances(self) -> list[float]:
        """Return each copy's energy distance from the data, with labels the mean over the labels."""
        count = max(1, self.classes)
        parts = self.samples(SAMPLES)[0].unflatten(0, (self.copies, count, -1))
        return [
            sum(distance_to_data(part, centres()[label::count]) for label, part in enumerate(copy)) / count
            for copy in parts
        ]

    @torch.no_grad()
    def alignment(self, weight: float) -> list[tuple[float, float]]:
        """Compare the two scores' difference at a weak weight with that of DMD, at noised samples of each generator.

        Args:
            weight: the weak weight a.

        Returns:
            For each copy the cosine of `v_a - v_1` and `v_0 - v_1` over all samples and levels, and the ratio of their
            lengths. If a_weak only scales the difference, these are 1 and 1 - a.
        """
        x_hat, labels = self.samples(SAMPLES)
        generator = torch.Generator().manual_seed(NOISE_SEED + 1)
        eps = torch.randn(SAMPLES, 2, generator=generator).repeat(self.copies, 1)
        sigma = sample_sigma(SAMPLES, SHIFT, generator).repeat(self.copies)
        x = add_noise(x_hat, eps, sigma)
        weak, none, strong = (self.score(a, labels)(x, sigma) for a in (weight, 0.0, 1.0))
        ours, plain = ((v - strong).view(self.copies, -1) for v in (weak, none))
        cosines = F.cosine_similarity(ours, plain, dim=1)
        ratios = ours.norm(dim=1) / plain.norm(dim=1)
        return list(zip(cosines.tolist(), ratios.tolist(), strict=True))

"""The world of the ring: eight Gaussians in the plane, small networks, and a teacher that knows the data.

Optionally the samples have labels. Each of four labels is two opposite Gaussians.
"""

from itertools import pairwise
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.flow import Velocity, few_step_sigmas, sample_euler
from magicdistill_core.metrics.distances import energy_distance
from magicdistill_core.objectives.flow_matching import flow_matching_loss
from magicdistill_core.objectives.noise_levels import sample_sigma

MODES, RADIUS, STD = 8, 2.0, 0.1
SHIFT, FAKE_UPDATES = 5.0, 5
TEACHER_UPDATES, TEACHER_BATCH, TEACHER_RATE = 6000, 512, 1e-3
# How often the teacher is trained without a label.
LABEL_DROPOUT = 0.1
RANK = 8
# Number of steps of the teacher.
ODE_STEPS = 28
# Number of samples for the energy distance.
MEASURED = 2000
# Frequencies that encode the noise level. They keep the generator's few levels well apart.
_WAVES = tuple(0.5 * 2.0**octave for octave in range(8))
# Number of a network's inputs without labels.
INPUTS = 2 + 2 * len(_WAVES)


def centres() -> Tensor:
    """Return the centres of the Gaussians, `[8, 2]`."""
    angles = torch.arange(MODES) * (2 * pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def sample_of(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw samples of the data, `[B, 2]`.

    Args:
        labels: one-hot labels `[B, classes]` of the samples. With four classes, each label is two opposite Gaussians.
            Without classes `[B, 0]`, every sample comes from all Gaussians.
        generator: the source of the random numbers.
    """
    count, classes = labels.shape
    if classes:
        modes = labels.argmax(dim=1) + classes * torch.randint(MODES // classes, (count,), generator=generator)
    else:
        modes = torch.randint(MODES, (count,), generator=generator)
    return centres()[modes] + STD * torch.randn(count, 2, generator=generator)


def sample_labels(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Draw one-hot labels `[count, classes]`; without classes, no random number is drawn."""
    if not classes:
        return torch.zeros(count, 0)
    return F.one_hot(torch.randint(classes, (count,), generator=generator), classes).float()


def sample_data(count: int, generator: torch.Generator) -> Tensor:
    """Draw samples of the data, `[count, 2]`."""
    return sample_of(torch.zeros(count, 0), generator)


def encode(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the inputs of a network's first layer, `[B, D]`: `x` `[B, D']` and waves of the levels `sigma` `[B]`."""
    phases = 2 * pi * sigma[:, None].to(x) * torch.tensor(_WAVES)
    return torch.cat([x, phases.sin(), phases.cos()], dim=1)


class Network(nn.Module):
    """A small network: the velocity of points in the plane, or a discriminator with `outputs=1`.

    Args:
        outputs: number of outputs.
        width: width of the hidden layers.
        classes: number of labels; the label is appended to the points.
    """

    def __init__(self, outputs: int = 2, width: int = 256, classes: int = 0) -> None:
        super().__init__()
        widths = [INPUTS + classes, width, width, width, outputs]
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise(widths))

    def forward(self, x: Tensor, sigma: Tensor, branch: "Branch | None" = None, weight: float = 1.0) -> Tensor:
        """Return `[B, outputs]`.

        Args:
            x: points `[B, 2]`; with labels `[B, 2 + classes]`.
            sigma: noise levels `[B]`.
            branch: is added to every layer; None adds nothing.
            weight: the factor of the branch.
        """
        x = encode(x, sigma)
        for number, layer in enumerate(self.layers):
            y = layer(x)
            if branch is not None:
                y = y + weight * branch(number, x)
            x = F.silu(y) if number + 1 < len(self.layers) else y
        return x


class Branch(nn.Module):
    """A low-rank branch on the layers of a network; its output is zero at the start."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        linears = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        self.down = nn.ParameterList(
            torch.randn(RANK, linear.in_features) / linear.in_features**0.5 for linear in linears
        )
        self.up = nn.ParameterList(torch.zeros(linear.out_features, RANK) for linear in linears)

    def forward(self, number: int, x: Tensor) -> Tensor:
        """Return the branch's addition to the output of layer `number`."""
        return x @ self.down[number].T @ self.up[number].T


def labelled(velocity: Velocity, labels: Tensor) -> Velocity:
    """Return a velocity of points `[B, 2]` from one whose input has labels `[B, classes]` next to the points."""
    return lambda x, sigma: velocity(torch.cat([x, labels], dim=1), sigma)


def learn_teacher(updates: int = TEACHER_UPDATES, seed: int = 0, width: int = 256, classes: int = 0) -> Network:
    """Train the teacher by flow matching and return it frozen.

    Args:
        updates: number of updates.
        seed: seed of the first weights and of all draws.
        width: width of the hidden layers.
        classes: number of labels. A part of the samples is trained without its label, which makes guidance possible.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(width=width, classes=classes)
    optimizer = torch.optim.Adam(network.parameters(), TEACHER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        labels = sample_labels(TEACHER_BATCH, classes, generator)
        z = sample_of(labels, generator)
        eps = torch.randn(TEACHER_BATCH, 2, generator=generator)
        sigma = sample_sigma(TEACHER_BATCH, SHIFT, generator)
        if classes:
            labels = labels * (torch.rand(TEACHER_BATCH, 1, generator=generator) >= LABEL_DROPOUT)
        optimizer.zero_grad()
        flow_matching_loss(labelled(network, labels), z, eps, sigma).backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


@torch.no_grad()
def measured(velocity: Velocity, steps: int) -> float:
    """Return the energy distance of Euler samples from the data. Every call uses the same noise and data."""
    generator = torch.Generator().manual_seed(12345)
    noise = torch.randn(MEASURED, 2, generator=generator)
    return energy_distance(
        sample_euler(velocity, noise, few_step_sigmas(steps, SHIFT)), sample_data(MEASURED, generator)
    )


def mean_distance(square: Tensor, std: float) -> Tensor:
    """Return the mean length of a normally distributed vector in the plane (the mean of Rice's distribution).

    With `q = d^2 / (4 s^2)` it is `s sqrt(pi / 2) e^-q ((1 + 2q) I0(q) + 2q I1(q))`.

    Args:
        square: squared length d^2 of the vector's mean, of any shape.
        std: standard deviation s of each of the two components.

    Returns:
        The mean lengths, shaped as `square`.
    """
    q = square / (4 * std**2)
    return std * (pi / 2) ** 0.5 * ((1 + 2 * q) * torch.special.i0e(q) + 2 * q * torch.special.i1e(q))


def distance_to_data(x: Tensor, modes: Tensor) -> float:
    """Return the energy distance of samples from Gaussians of the ring: `2 E|x - y| - E|x - x'| - E|y - y'|`.

    The means over the data y are exact. Only the samples x add noise, so a curve of this distance is smoother than one
    of `measured`. Its mean is 0 for samples of the data.

    Args:
        x: samples `[N, 2]`, N of at least 2.
        modes: centres `[M, 2]` of the Gaussians that x should come from.
    """
    to_data = mean_distance(torch.cdist(x, modes).square(), STD).mean()
    within = torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
    within_data = mean_distance(torch.cdist(modes, modes).square(), STD * 2**0.5).mean()
    return float(2 * to_data - within - within_data)

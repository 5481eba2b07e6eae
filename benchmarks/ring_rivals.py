"""Published alternatives and additions to distribution matching, for a comparison on the ring with labels.

DFD: Data-Forcing Distillation (arXiv 2606.18478). d-DMD: Decoupled DMD (arXiv 2511.22677). DP-DMD: Diversity-Preserved
DMD (arXiv 2602.03139). Phased DMD: arXiv 2510.27684.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.flow import Velocity, add_noise, expand_sigma, few_step_sigmas, sample_euler, shift_sigma
from magicdistill_core.objectives.distribution_matching import (
    Guidance,
    generator_loss,
    matching_gradient,
    surrogate_loss,
)
from magicdistill_core.objectives.noise_levels import SIGMA_MAX, SIGMA_MIN

from .ring import Method
from .ring_stack import Stack, stacked_velocity
from .ring_world import ODE_STEPS, SHIFT, Network, labelled

# DP-DMD: the generator's first step learns where the teacher is after so many of its steps.
ANCHOR = 5
# Phased DMD, Eq. 13: the largest weight of the fake score's loss.
LARGEST_WEIGHT = 10.0

Kind = Literal["", "guidance", "decoupled", "forced_score", "forced_x0", "first_step"]


@dataclass(frozen=True)
class Rival(Method):
    """A method with one addition to distribution matching.

    Attributes:
        kind: the addition. `guidance`: classifier-free guidance of the real score. `decoupled`: the guidance has its
            own noise levels, below that of the generator's last call (d-DMD Eq. 8). `forced_score` and `forced_x0`: in
            every second update on average, the real score is evaluated at noised data (DFD Eq. 8 and 10). The two
            compare scores, as the paper's equations, and x0 estimates, as DMD2's normalised gradient. `first_step`: the
            generator's first step learns from the teacher, and matching only trains the other steps (DP-DMD Eq. 7
            and 8). Empty for none.
        strength: of guidance its scale, of data forcing its probability per update, of the first step its weight.
        start: the share of the updates before the addition begins; matching alone trains until then.
    """

    kind: Kind = ""
    strength: float = 0.0
    start: float = 0.0


class RivalStack(Stack):
    """The trainings of several generators with the same addition.

    Args:
        methods: the method of each copy; all must agree in their `shared_settings`.
        seeds: the seed of each copy.
        teacher: the frozen teacher, which knows labels and their absence.
        updates: number of generator updates of the run.
    """

    def __init__(self, methods: Sequence[Rival], seeds: Sequence[int], teacher: Network, updates: int) -> None:
        super().__init__(methods, seeds, teacher)
        self.rival, self.updates = methods[0], updates

    def exits(self) -> Tensor:
        """Draw each copy's exit index `[C]`. `first_step` never ends a rollout at the first level."""
        first = int(self.rival.kind == "first_step")
        return self.draw(lambda generator: torch.randint(first, self.method.steps, (1,), generator=generator))

    def generator_loss(self, number: int) -> Tensor:
        kind = self.rival.kind
        if not kind or number < self.rival.start * self.updates:
            return super().generator_loss(number)
        labels, noise, exits = self.labels(), self.noise(), self.exits()
        x_hat = self.rollout(noise, exits, labels)
        eps, sigma = self.noise(), self.level()
        real, fake, guidance = self.score(self.weak, labels), self.score(1.0, labels), None
        unconditional = self.score(self.weak, torch.zeros_like(labels))
        if kind == "guidance":
            guidance = Guidance(self.rival.strength, unconditional)
        if kind in ("forced_score", "forced_x0"):
            real = self._at_data(real, x_hat.detach(), labels, eps)
        normalize = self.method.normalize
        loss = generator_loss(x_hat, eps, sigma, real, fake, normalize=normalize, guidance=guidance).loss
        if kind == "decoupled":
            loss = loss + surrogate_loss(x_hat, self._guidance_gradient(x_hat, exits, real, unconditional))
        if kind == "first_step":
            loss = loss + self.rival.strength * self._first_step_loss(noise, labels)
        return loss

    def _at_data(self, real: Velocity, x_hat: Tensor, labels: Tensor, eps: Tensor) -> Velocity:
        """Return the real score with some copies evaluated at noised data of the same labels (DFD Eq. 8 and 10).

        At equal noise, the difference of the two scores at different points is that of the velocities' errors
        `(r - u_z) - (f - u_x)`, with `u_z = eps - z` and `u_x = eps - x_hat`. The returned velocity contains
        `u_x - u_z`, so `matching_gradient` computes this difference. For `forced_x0` it contains what makes its x0
        estimate at the samples equal to that of the real score at the data.
        """
        z = self.data_of(labels)
        draws = self.draw(lambda generator: torch.rand(1, generator=generator)) < self.rival.strength
        forced = draws.repeat_interleave(self.method.batch)[:, None]

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            r = real(torch.where(forced, add_noise(z, eps, sigma), x), sigma)
            s = expand_sigma(sigma, x)
            moved = z - x_hat if self.rival.kind == "forced_score" else (1 - s) / s * (x_hat - z)
            return torch.where(forced, r + moved, r)

        return velocity

    def _guidance_gradient(self, x_hat: Tensor, exits: Tensor, real: Velocity, unconditional: Velocity) -> Tensor:
        """Return the gradient of guidance at levels below the generator's last call, `[C * B, 2]` (d-DMD Eq. 8)."""
        times = (1 - exits / self.method.steps).repeat_interleave(self.method.batch)
        uniform = self.draw(lambda generator: torch.rand(self.method.batch, generator=generator))
        sigma, eps = shift_sigma(times * uniform, SHIFT).clamp(SIGMA_MIN, SIGMA_MAX), self.noise()
        with torch.no_grad():
            x = add_noise(x_hat, eps, sigma)
            gradient = matching_gradient(
                x_hat, eps, sigma, real(x, sigma), unconditional(x, sigma), normalize=self.method.normalize
            )
        return (self.rival.strength - 1) * gradient

    def _first_step_loss(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the squared distance of the generator's first velocity from the teacher's way (DP-DMD Eq. 6 and 7)."""
        sigmas = few_step_sigmas(ODE_STEPS, SHIFT)[: ANCHOR + 1]
        target = sample_euler(labelled(self.teacher, labels), noise, sigmas)
        velocity = self.generate(labels)(noise, sigmas[0].expand(len(noise)))
        return F.mse_loss(velocity, (noise - target) / (1 - sigmas[ANCHOR]))


def subinterval_loss(x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor, velocity: Velocity) -> Tensor:
    """Return the loss of a velocity at levels t, for samples that have noise of level s already (Phased DMD Eq. 13).

    Args:
        x_s: samples at level s, `[B, ...]`.
        eps: fresh standard normal noise shaped as `x_s`.
        s: the samples' level, a scalar below 1.
        t: levels `[B]` above s.
        velocity: the velocity that is trained, a callable `(x, sigma) -> velocity`.
    """
    level, alpha_s = expand_sigma(t, x_s), 1 - s
    x_t, scale, _ = renoised(x_s, eps, s, t)
    target = (alpha_s**2 * level + (1 - level) * s**2) / alpha_s**2 * eps - scale / alpha_s * x_s
    weight = scale.pow(-2).clamp_max(LARGEST_WEIGHT)
    return (weight * (scale * velocity(x_t, t) - target).square()).mean()


def renoised(x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move samples from level s to levels t by adding noise (Phased DMD Eq. 2); arguments as in `subinterval_loss`.

    Returns:
        The samples at t, shaped as `x_s`; then the factors of the noise and of `x_s` in them, `[B, 1, ...]`.
    """
    level = expand_sigma(t, x_s)
    kept = (1 - level) / (1 - s)
    scale = (level**2 - kept**2 * s**2).sqrt()
    return kept * x_s + scale * eps, scale, kept


class PhasedStack(Stack):
    """Phased DMD: one generator per step, trained one after the other.

    In phase k, generator k learns the step from level k to level k + 1. Both scores compare its samples where they are,
    at level k + 1, after more noise. Each phase starts with the teacher's weights and an empty branch.
    Arguments as in `RivalStack`.
    """

    def __init__(self, methods: Sequence[Method], seeds: Sequence[int], teacher: Network, updates: int) -> None:
        super().__init__(methods, seeds, teacher)
        self.methods, self.seeds, self.updates = methods, seeds, updates
        self.untrained = [tensor.detach().clone() for tensor in self.student]
        self.experts: list[list[Tensor]] = []

    @property
    def phase(self) -> int:
        return len(self.experts)

    def round(self, number: int) -> None:
        """Make the updates of round `number`, and begin the next phase if it is time."""
        if number * self.method.steps >= (self.phase + 1) * self.updates:
            self.experts.append([tensor.detach() for tensor in self.student])
            self.student = [tensor.clone().requires_grad_() for tensor in self.untrained]
            self.branch = self.first_branches(self.seeds)
            self.start_optimizers(self.methods)
        super().round(number)

    def descend(self, noise: Tensor, exits: Tensor, labels: Tensor) -> Tensor:
        """Return the latents of Euler sampling; every copy has the same exit level. Untrained steps use the teacher."""
        experts = [*self.experts, self.student, *[self.untrained] * self.method.steps]
        x = noise
        with torch.no_grad():
            for step in range(int(exits[0])):
                x = self._one_step(experts[step], x, step, labels)
        return x

    def _one_step(self, tensors: Sequence[Tensor], x: Tensor, step: int, labels: Tensor) -> Tensor:
        sigma, following = self.sigmas[step], self.sigmas[step + 1]
        return x + (following - sigma) * stacked_velocity(tensors, labels)(x, sigma.expand(len(x)))

    def _samples(self, labels: Tensor) -> Tensor:
        """Return samples at level k + 1; the step of generator k has a gradient."""
        x = self.descend(self.noise(), torch.full((self.copies,), self.phase), labels)
        return self._one_step(self.student, x, self.phase, labels)

    def level(self) -> Tensor:
        """Draw levels `[C * B]` above the level of the phase's samples."""
        lowest = 1 - (self.phase + 1) / self.method.steps
        uniform = self.draw(lambda generator: torch.rand(self.method.batch, generator=generator))
        return shift_sigma(lowest + (1 - lowest) * uniform, SHIFT).clamp(SIGMA_MIN, SIGMA_MAX)

    def fake_loss(self) -> Tensor:
        labels = self.labels()
        with torch.no_grad():
            x_s = self._samples(labels)
        s = self.sigmas[self.phase + 1]
        # A level that was clamped may be below s, where there is nothing to compare.
        return subinterval_loss(x_s, self.noise(), s, self.level().clamp_min(s + SIGMA_MIN), self.score(1.0, labels))

    def generator_loss(self, number: int) -> Tensor:
        labels = self.labels()
        x_s, s, eps = self._samples(labels), self.sigmas[self.phase + 1], self.noise()
        t = self.level().clamp_min(s + SIGMA_MIN)
        with torch.no_grad():
            x_t, _, kept = renoised(x_s, eps, s, t)
            difference = self.score(self.weak, labels)(x_t, t) - self.score(1.0, labels)(x_t, t)
            level = expand_sigma(t, x_s)
            gradient = (1 - level) * kept / ((1 - level) * level + level**2) * difference
        return surrogate_loss(x_s, gradient)

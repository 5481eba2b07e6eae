"""Latent consistency distillation: FastVideo's method, a baseline of the MagicDistillation paper (MD App. B).

MD: MagicDistillation (arXiv 2503.13319).
"""

import torch
from torch import Tensor

from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.consistency import consistency_loss

from ..config.methods import GENERATOR, LCMConfig
from .base import Loss, Method, MicroBatch


class LatentConsistency(Method[LCMConfig]):
    """The method `lcm`: the generator learns to jump from any level of the teacher's ODE to its end.

    The levels are those of the teacher's many-step schedule.
    """

    headline = ("generator/loss", "generator/gradient_norm")

    @property
    def order(self) -> tuple[str, ...]:
        """One update of the generator."""
        return (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Return the Huber distance between two predicted ends of the ODE.

        The student, which is the generator, predicts from a level. The target network predicts from the next level,
        after one Euler step of the teacher. The setting `target` decides whether that network is the teacher or the
        student.
        """
        sigma, sigma_next = self._neighbours(batch)
        student = self.networks.generator_velocity(batch.condition)
        teacher = self.networks.teacher(batch.condition)
        value = consistency_loss(
            student,
            teacher,
            teacher if self.settings.target == "teacher" else student,
            batch.latents,
            self._noise("loss", batch),
            sigma,
            sigma_next,
            self.settings.huber_width,
        )
        return Loss(value, {"generator/loss": value.detach()})

    def _neighbours(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Draw a level and the next level of the teacher's schedule per sample; both `[B]`."""
        steps = self.settings.ode_steps
        sigmas = few_step_sigmas(steps, self.schedule.shift)

        def draw(generator: torch.Generator) -> Tensor:
            return torch.randint(steps, (), generator=generator)

        index = self.draws.each("node", batch.update, batch.positions, draw)
        return sigmas[index].to(self.device), sigmas[index + 1].to(self.device)

"""Latent consistency distillation: FastVideo's recipe, a baseline in the MagicDistillation paper (MD App. B)."""

import torch
from torch import Tensor

from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.consistency import consistency_loss

from ..config.methods import GENERATOR, LCMConfig
from .base import Loss, Method, MicroBatch


class LatentConsistency(Method[LCMConfig]):
    """The generator learns to jump from any level of the teacher's many-step schedule to the end of its ODE."""

    headline = ("generator/loss", "generator/gradient_norm")

    @property
    def order(self) -> tuple[str, ...]:
        """The generator only."""
        return (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Compute the Huber distance between two predicted ends of the ODE.

        The student predicts from a level; the target network predicts from the next level, after one Euler step of the
        teacher.
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

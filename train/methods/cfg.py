"""CFG distillation (M141 Sec. 3.1): one call of the student replaces the two calls of a guided teacher.

CFG is classifier-free guidance. The student is the generator that is trained. M141: Magic 1-For-1 (arXiv 2502.07701).
"""

import torch
from torch import Tensor

from magicdistill_core.objectives.flow_matching import flow_matching_loss
from magicdistill_core.objectives.guidance import cfg_distillation_loss

from ..config.methods import GENERATOR, CFGConfig
from .base import Loss, Method, MicroBatch


class GuidanceDistillation(Method[CFGConfig]):
    """The method `cfg`: the generator learns the teacher's guided velocity; its guidance embedding receives the scale.

    A teacher that already has a guidance embedding is called with scale 1.
    """

    headline = ("generator/distillation", "generator/base_loss")

    @property
    def order(self) -> tuple[str, ...]:
        """One update of the generator."""
        return (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Return the distance to the guided teacher plus flow matching without guidance (M141 Eq. 8).

        The distance is measured at a random guidance scale per sample, flow matching at scale 1. Each term is one part
        (see `Loss`): it calls the generator, and its graph is freed before the next part.
        """
        networks, condition, scales = self.networks, batch.condition, self._scales(batch)
        unguided = torch.ones_like(scales)
        eps, sigma = self._noise("loss", batch), self._level("level", batch)
        distance = cfg_distillation_loss(
            networks.generator_velocity(condition, guidance=scales),
            networks.teacher(condition, guidance=unguided),
            networks.teacher(condition, guidance=unguided, unconditional=True),
            batch.latents,
            eps,
            sigma,
            scales,
        )
        weighted, distillation = self.settings.weight * distance, distance.detach()

        def base() -> Loss:
            student = networks.generator_velocity(condition, guidance=unguided)
            value = flow_matching_loss(student, batch.latents, eps, sigma)
            metrics = {
                "generator/loss": self.settings.weight * distillation + value.detach(),
                "generator/distillation": distillation,
                "generator/base_loss": value.detach(),
            }
            return Loss(value, metrics)

        return Loss(weighted, {}, after=base)

    def _scales(self, batch: MicroBatch) -> Tensor:
        """Draw guidance scales `[B]`, uniform over the configured range, one per sample."""
        low, high = self.settings.scale_min, self.settings.scale_max

        def draw(generator: torch.Generator) -> Tensor:
            return low + (high - low) * torch.rand((), generator=generator)

        return self.draws.each("guidance", batch.update, batch.positions, draw).to(self.device)

"""Training of a teacher by flow matching on videos: how the portrait teacher of MagicDistillation was made."""

from dataclasses import replace

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import shift_sigma
from magicdistill_core.objectives.flow_matching import flow_matching_loss, noise_reference
from magicdistill_core.objectives.noise_levels import logit_normal_sigma

from ..config.methods import GENERATOR, SFTConfig
from .base import Loss, Method, MicroBatch


class FineTuning(Method[SFTConfig]):
    """The generator is the teacher, and learns from the data alone."""

    headline = ("generator/loss", "generator/gradient_norm")

    @property
    def order(self) -> tuple[str, ...]:
        """The generator alone."""
        return (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Flow matching (M141 Eq. 9) at logit-normal levels."""
        value = flow_matching_loss(
            self.networks.generator_velocity(batch.condition),
            batch.latents,
            self._noise("loss", batch),
            self._levels(batch),
            self._channel_weights(),
        )
        return Loss(value, {"generator/loss": value.detach()})

    def shown(self, images: StartImage, update: int, positions: list[int]) -> StartImage:
        """With a little noise on them, if configured."""
        if self.settings.reference_noise is None:
            return images
        mean, std = self.settings.reference_noise

        def draw(generator: torch.Generator) -> Tensor:
            return mean + std * torch.randn((), generator=generator)

        log_std = self.draws.each("reference level", update, positions, draw).to(self.device)
        eps = self.draws.noise("reference", update, positions, images.latents.shape[1:]).to(self.device)
        return replace(images, latents=noise_reference(images.latents, log_std, eps))

    def _levels(self, batch: MicroBatch) -> Tensor:
        """Noise levels `[B]`: logit-normal, and a configured share of them uniform before the shift."""
        settings, shift = self.settings, self.schedule.shift

        def draw(generator: torch.Generator) -> Tensor:
            if settings.uniform_levels and torch.rand((), generator=generator) < settings.uniform_levels:
                return shift_sigma(torch.rand((), generator=generator), shift)
            return logit_normal_sigma(1, shift, generator, settings.level_mean, settings.level_std)[0]

        return self.draws.each("level", batch.update, batch.positions, draw).to(self.device)

    def _channel_weights(self) -> Tensor | None:
        """The configured weights with mean 1, `[C, 1, 1, 1]`; None where there are none."""
        if self.settings.channel_weights is None:
            return None
        weight = torch.tensor(self.settings.channel_weights, device=self.device)
        return (weight / weight.mean()).view(-1, 1, 1, 1)

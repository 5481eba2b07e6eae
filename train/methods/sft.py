"""Fine-tuning of a teacher with flow matching on videos, as for the portrait teacher of MagicDistillation.

M141: Magic 1-For-1 (arXiv 2502.07701).
"""

from dataclasses import replace

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import shift_sigma
from magicdistill_core.objectives.flow_matching import flow_matching_loss, noise_reference, x0_weight
from magicdistill_core.objectives.noise_levels import normal_sigma

from ..config.methods import GENERATOR, SFTConfig
from .base import Loss, Method, MicroBatch


class FineTuning(Method[SFTConfig]):
    """The method `sft`: the generator starts as the teacher and learns only from the data."""

    headline = ("generator/loss", "generator/gradient_norm")

    @property
    def order(self) -> tuple[str, ...]:
        """One update of the generator."""
        return (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Return the flow matching loss (M141 Eq. 9) at logit-normal levels, in velocities or in clean estimates."""
        sigma, weight = self._levels(batch), self._channel_weights()
        if self.settings.loss_weight == "x0":
            by_level = x0_weight(sigma, batch.latents)
            weight = by_level if weight is None else by_level * weight
        value = flow_matching_loss(
            self.networks.generator_velocity(batch.condition), batch.latents, self._noise("loss", batch), sigma, weight
        )
        return Loss(value, {"generator/loss": value.detach()})

    def prepare_images(self, images: StartImage, update: int, positions: list[int]) -> StartImage:
        """Return the start images with a little noise, if `reference_noise` is configured, else unchanged.

        Args:
            images: start images from the dataset, on the training's device.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the update's global batch.
        """
        if self.settings.reference_noise is None:
            return images
        mean, std = self.settings.reference_noise

        def draw(generator: torch.Generator) -> Tensor:
            return mean + std * torch.randn((), generator=generator)

        log_std = self.draws.each("reference level", update, positions, draw).to(self.device)
        eps = self.draws.noise("reference", update, positions, images.latents.shape[1:]).to(self.device)
        return replace(images, latents=noise_reference(images.latents, log_std, eps))

    def _levels(self, batch: MicroBatch) -> Tensor:
        """Draw noise levels `[B]`: logit-normal, with a configured share that is uniform before the shift."""
        settings, shift = self.settings, self.schedule.shift

        def draw(generator: torch.Generator) -> Tensor:
            normal = torch.randn(1, generator=generator)
            return torch.cat([normal, torch.rand(2, generator=generator)])

        # All levels are computed together, because operations on many small tensors are slow.
        normal, kind, uniform = self.draws.each("level", batch.update, batch.positions, draw).unbind(1)
        spread = normal_sigma(normal, shift, settings.level_mean, settings.level_std)
        return torch.where(kind < settings.uniform_levels, shift_sigma(uniform, shift), spread).to(self.device)

    def _channel_weights(self) -> Tensor | None:
        """Return the configured channel weights scaled to mean 1, `[C, 1, 1, 1]`; None if none are configured."""
        if self.settings.channel_weights is None:
            return None
        weight = torch.tensor(self.settings.channel_weights, device=self.device)
        return (weight / weight.mean()).view(-1, 1, 1, 1)

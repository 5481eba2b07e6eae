"""Distribution matching: weak-to-strong (MagicDistillation), DMD, DMD2 and ground-truth supervision.

A *score* is the velocity of the frozen teacher plus a low-rank branch at a weight. The fake score follows the
distribution of the generator's samples. The real score is close to the teacher. The difference of the two moves the
generator. A *round* is the updates of `DistributionMatching.order`. MD: MagicDistillation (arXiv 2503.13319).
"""

from typing import TypeVar

import torch
from torch import Tensor

from magicdistill_core.flow import add_noise
from magicdistill_core.objectives.adversarial import adversarial_gradient, discriminator_loss
from magicdistill_core.objectives.distribution_matching import Guidance, fake_loss, generator_loss
from magicdistill_core.objectives.supervision import supervision_loss

from ..config.methods import DISCRIMINATOR, FAKE, GENERATOR, MatchingConfig
from ..networks.fp32_calls import fp32_calls
from .base import Loss, Method, MicroBatch

# Latents are scaled to a standard deviation near 1. Natural clips have hardly any value with a larger magnitude.
SATURATED = 4.0

M = TypeVar("M", bound=MatchingConfig)


class DistributionMatching(Method[M]):
    """Distribution matching with one low-rank branch.

    At the strong weight the branch is the fake score; at the weak weight (0 for DMD) it is the real score. The
    configuration can add guidance of the real score, ground-truth supervision and a discriminator.
    """

    headline = ("fake/loss", "generator/matching_gradient")

    @property
    def order(self) -> tuple[str, ...]:
        """First the fake branch `fake_updates` times, then the discriminator if configured, then the generator."""
        discriminator = self.settings.discriminator
        discriminator_updates = () if discriminator is None else (DISCRIMINATOR,) * discriminator.updates
        return (FAKE,) * self.settings.fake_updates + discriminator_updates + (GENERATOR,)

    @property
    def warmup_order(self) -> tuple[str, ...]:
        """The fake branch alone, as often as in a usual round."""
        return (FAKE,) * self.settings.fake_updates

    @torch.no_grad()
    def agreement(self, batch: MicroBatch) -> Tensor | None:
        """Return the cosine of `r - f` in the network's precision with `r - f` in fp32; a collective call.

        r and f are the velocities of the real and the fake score at a noised sample, before guidance. Their difference
        starts at zero with the branch. As long as it is smaller than the rounding of bf16, the cosine is near 0 and the
        generator learns noise. With noise of the size of the signal the cosine is 0.71. The two differences are
        computed with the same weights at the same input.

        Args:
            batch: the micro-batch to measure on.

        Returns:
            The mean of the samples' cosines; 0 for a sample whose scores are equal.
        """
        settings, condition, sigma = self.settings, batch.condition, self._level("signal", batch)
        x_sigma = add_noise(self._rollout(batch), self._noise("signal", batch), sigma)

        def difference() -> Tensor:
            real = self.networks.score(condition, settings.a_weak)(x_sigma, sigma)
            fake = self.networks.score(condition, settings.a_strong)(x_sigma, sigma)
            return (real - fake).flatten(1)

        rounded = difference()
        with fp32_calls():
            exact = difference()
        return torch.cosine_similarity(rounded, exact).mean()

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Return the loss of one role.

        The fake branch learns flow matching on samples, the discriminator separates latents from samples, and the
        generator learns distribution matching.
        """
        if role == FAKE:
            return self._fake(batch)
        return self._discriminator(batch) if role == DISCRIMINATOR else self._generator(batch)

    def _round(self, batch: MicroBatch) -> int:
        """Return the number of the round, counted from 0."""
        return batch.update // len(self.order)

    def _fake(self, batch: MicroBatch) -> Loss:
        with torch.no_grad():
            x_hat = self._rollout(batch)
        score = self.networks.score(batch.condition, self.settings.a_strong)
        value = fake_loss(x_hat, self._noise("loss", batch), self._level("level", batch), score)
        return Loss(value, {"fake/loss": value.detach()})

    def _generator(self, batch: MicroBatch) -> Loss:
        x_hat = self._rollout(batch)
        return self._total(batch, x_hat, self._matching(batch, x_hat))

    def _matching(self, batch: MicroBatch, x_hat: Tensor) -> Loss:
        """Return the distribution matching loss without additions (MD Eq. 2, 5 and 6)."""
        settings, condition = self.settings, batch.condition
        guidance = None
        if settings.uses_negative_prompt:
            negative = self.networks.score(condition, settings.a_weak, unconditional=True)
            guidance = Guidance(settings.guidance_scale, negative)
        result = generator_loss(
            x_hat,
            self._noise("loss", batch),
            self._level("level", batch),
            real=self.networks.score(condition, settings.a_weak),
            fake=self.networks.score(condition, settings.a_strong),
            normalize=settings.normalize,
            guidance=guidance,
        )
        metrics = {
            "generator/loss": result.loss.detach(),
            "generator/matching_gradient": result.gradient_norm,
            "generator/real_fake_distance": result.real_fake_distance,
            "generator/relative_distance": result.relative_distance,
            # Collapse shows first in the motion and the saturation of the samples.
            "generator/motion": x_hat.detach().diff(dim=2).abs().mean(),
            "generator/temporal_variance": x_hat.detach().var(dim=2, correction=0).mean(),
            "generator/deviation": x_hat.detach().std(),
            "generator/saturation": (x_hat.detach().abs() > SATURATED).float().mean(),
        }
        if guidance is not None:
            metrics["generator/guidance_ratio"] = result.guidance_ratio
        return Loss(result.loss, metrics)

    def _total(self, batch: MicroBatch, x_hat: Tensor, matching: Loss) -> Loss:
        """Add the configured terms to the matching loss: the adversarial gradient, and supervision as a second part."""
        value, metrics = matching.value, dict(matching.metrics)
        discriminator = self.settings.discriminator
        if discriminator is not None:
            loss, gradient = adversarial_gradient(
                self.networks.discriminator_logits(batch.condition),
                x_hat,
                self._noise("judged", batch),
                self._level("judged", batch),
            )
            weight = discriminator.weight if self._round(batch) >= discriminator.warmup else 0.0
            value = value + weight * (x_hat * gradient).sum()
            metrics["generator/adversarial_loss"] = loss
            metrics["generator/adversarial_gradient"] = discriminator.weight * gradient.abs().mean() * gradient.numel()
        return Loss(value, metrics, None if self.settings.supervision is None else lambda: self._supervision(batch))

    def _supervision(self, batch: MicroBatch) -> Loss:
        """Return the weighted supervision loss (MD Eq. 7) at a random level of the schedule per sample."""
        settings = self.settings.supervision
        assert settings is not None
        indices = self.draws.each(
            "node",
            batch.update,
            batch.positions,
            lambda generator: torch.randint(self.schedule.steps, (), generator=generator),
        )
        value = supervision_loss(
            self.networks.generator_velocity(batch.condition),
            batch.latents,
            self._noise("supervision", batch),
            self.sigmas[indices].to(self.device),
            distance=settings.distance,
            xi=settings.xi,
        )
        return Loss(settings.weight * value, {"generator/supervision": value.detach()})

    def _discriminator(self, batch: MicroBatch) -> Loss:
        discriminator = self.settings.discriminator
        assert discriminator is not None
        with torch.no_grad():
            x_hat = self._rollout(batch)
        result = discriminator_loss(
            self.networks.discriminator_logits(batch.condition),
            batch.latents,
            x_hat,
            self._noise("judged", batch),
            self._level("judged", batch),
            r1=discriminator.r1,
            perturbation=discriminator.r1_noise * self._noise("r1", batch) if discriminator.r1 else None,
        )
        metrics = {
            "discriminator/loss": result.loss.detach(),
            "discriminator/real_logit": result.real_logit,
            "discriminator/fake_logit": result.fake_logit,
            "discriminator/penalty": result.penalty,
        }
        return Loss(result.loss, metrics)

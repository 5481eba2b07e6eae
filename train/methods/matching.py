"""Distribution matching in all its forms: weak-to-strong (MagicDistillation), DMD, DMD2, ground-truth supervision."""

from typing import TypeVar

import torch
from torch import Tensor

from magicdistill_core.objectives.adversarial import adversarial_gradient, discriminator_loss
from magicdistill_core.objectives.distribution_matching import Guidance, fake_loss, generator_loss
from magicdistill_core.objectives.supervision import supervision_loss

from ..config.methods import DISCRIMINATOR, FAKE, GENERATOR, MatchingConfig
from .base import Loss, Method, MicroBatch

# Latents are scaled to a deviation near 1: hardly a value of a natural clip lies beyond this.
SATURATED = 4.0

M = TypeVar("M", bound=MatchingConfig)


class DistributionMatching(Method[M]):
    """One branch, strong as the fake score and weak (or, for DMD, at weight 0) as the real one.

    Besides, as configured: guidance of the real score, ground-truth supervision, a discriminator.
    """

    headline = ("fake/loss", "generator/matching_gradient")

    @property
    def order(self) -> tuple[str, ...]:
        """The fake branch some times, the discriminator if there is one, then the generator."""
        discriminator = self.settings.discriminator
        judged = () if discriminator is None else (DISCRIMINATOR,) * discriminator.updates
        return (FAKE,) * self.settings.fake_updates + judged + (GENERATOR,)

    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Flow matching for the fake branch, real or fake for the discriminator, matching for the generator."""
        if role == FAKE:
            return self._fake(batch)
        return self._discriminator(batch) if role == DISCRIMINATOR else self._generator(batch)

    def _round(self, batch: MicroBatch) -> int:
        """The number of the round, from 0."""
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
        """The matching loss by itself (MD Eq. 2, 5 and 6)."""
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
            # Motion and saturation of the samples: where collapse shows first.
            "generator/motion": x_hat.detach().diff(dim=2).abs().mean(),
            "generator/temporal_variance": x_hat.detach().var(dim=2, correction=0).mean(),
            "generator/deviation": x_hat.detach().std(),
            "generator/saturation": (x_hat.detach().abs() > SATURATED).float().mean(),
        }
        if guidance is not None:
            metrics["generator/guidance_ratio"] = result.guidance_ratio
        return Loss(result.loss, metrics)

    def _total(self, batch: MicroBatch, x_hat: Tensor, matching: Loss) -> Loss:
        """The matching loss, and what is configured besides: the adversarial gradient, and supervision as a part."""
        value, metrics = matching.value, dict(matching.metrics)
        discriminator = self.settings.discriminator
        if discriminator is not None:
            loss, gradient = adversarial_gradient(
                self.networks.discriminator_logits(batch.condition),
                x_hat,
                self._noise("judged", batch),
                self._level("judged", batch),
            )
            taught = discriminator.weight if self._round(batch) >= discriminator.warmup else 0.0
            value = value + taught * (x_hat * gradient).sum()
            metrics["generator/adversarial_loss"] = loss
            metrics["generator/adversarial_gradient"] = discriminator.weight * gradient.abs().mean() * gradient.numel()
        return Loss(value, metrics, None if self.settings.supervision is None else lambda: self._supervision(batch))

    def _supervision(self, batch: MicroBatch) -> Loss:
        """MD Eq. 7 at a random level of the schedule for each sample, with its weight."""
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

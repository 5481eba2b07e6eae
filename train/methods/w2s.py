"""Weak-to-strong distribution matching (MagicDistillation): five updates of the fake branch, one of the generator."""

import torch

from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss

from ..method_config import FAKE, GENERATOR, W2SConfig
from .base import Loss, Method, MicroBatch


class WeakToStrong(Method[W2SConfig]):
    """The default method: one branch, strong as the fake score and weak as the real one."""

    headline = ("fake/loss", "generator/matching_gradient")

    @property
    def order(self) -> tuple[str, ...]:
        """The fake branch some times, then the generator."""
        return (FAKE,) * self.settings.fake_updates + (GENERATOR,)

    def loss(self, player: str, batch: MicroBatch) -> Loss:
        """Flow matching on the generator's samples for the fake branch, distribution matching for the generator."""
        return self._fake(batch) if player == FAKE else self._generator(batch)

    def _fake(self, batch: MicroBatch) -> Loss:
        with torch.no_grad():
            x_hat = self._rollout(batch)
        score = self.players.score(batch.condition, self.settings.a_strong)
        value = fake_loss(x_hat, self._noise("loss", batch), self._level("level", batch), score)
        return Loss(value, {"fake/loss": value.detach()})

    def _generator(self, batch: MicroBatch) -> Loss:
        x_hat = self._rollout(batch)
        result = generator_loss(
            x_hat,
            self._noise("loss", batch),
            self._level("level", batch),
            real=self.players.score(batch.condition, self.settings.a_weak),
            fake=self.players.score(batch.condition, self.settings.a_strong),
            normalize=self.settings.normalize,
        )
        metrics = {
            "generator/loss": result.loss.detach(),
            "generator/matching_gradient": result.gradient_norm,
            "generator/real_fake_distance": result.real_fake_distance,
            # Motion and saturation of the samples: where collapse shows first.
            "generator/motion": x_hat.detach().diff(dim=2).abs().mean(),
            "generator/deviation": x_hat.detach().std(),
        }
        return Loss(result.loss, metrics)

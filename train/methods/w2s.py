"""Weak-to-strong distribution matching (MagicDistillation): five updates of the fake branch, one of the generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.distribution_matching import fake_loss, generator_loss
from magicdistill_core.objectives.rollout import rollout

from ..config import TrainConfig
from ..draws import Draws
from ..engines import FAKE, GENERATOR, Players


@dataclass(frozen=True)
class MicroBatch:
    """What one forward on one process sees."""

    condition: Tensor  # [B, 17, T, H, W]
    positions: list[int]  # places in the update's global batch
    update: int  # number of the optimizer update, over both engines


@dataclass(frozen=True)
class Loss:
    """A differentiable value, and scalars for the log."""

    value: Tensor
    metrics: dict[str, Tensor]


class WeakToStrong:
    """The default method: one branch, strong as the fake score and weak as the real one."""

    def __init__(self, config: TrainConfig, players: Players, draws: Draws, device: torch.device) -> None:
        self.settings = config.method
        self.schedule = config.schedule
        self.sigmas = few_step_sigmas(config.schedule.steps, config.schedule.shift)
        self.players = players
        self.draws = draws
        self.device = device

    @property
    def order(self) -> tuple[str, ...]:
        """Who is updated, in order, in one round."""
        return (FAKE,) * self.settings.fake_updates + (GENERATOR,)

    def loss(self, player: str, batch: MicroBatch) -> Loss:
        """The loss of one player on one micro-batch."""
        return self._fake(batch) if player == FAKE else self._generator(batch)

    def _noise(self, purpose: str, batch: MicroBatch) -> Tensor:
        shape = (16, *batch.condition.shape[2:])
        return self.draws.noise(purpose, batch.update, batch.positions, shape).to(self.device)

    def _rollout(self, batch: MicroBatch) -> Tensor:
        exit_index = self.draws.exit_index(batch.update, self.schedule.steps)
        fresh = []
        if self.schedule.sampler == "renoise":
            fresh = [self._noise(f"renoise-{step}", batch) for step in range(exit_index)]
        return rollout(
            self.players.generator_velocity(batch.condition),
            self._noise("rollout", batch),
            self.sigmas,
            exit_index,
            self.schedule.sampler,
            fresh,
        )

    def _level(self, purpose: str, batch: MicroBatch) -> Tensor:
        return self.draws.sigma(purpose, batch.update, batch.positions, self.schedule.shift).to(self.device)

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

"""One-step distillation (MagicDistillation, Sec. 3.4).

The loss starts with regression on the samples of a few-step generator and moves to distribution matching.
"""

import torch.nn.functional as F

from ..config.methods import OneStepConfig
from .base import Loss, MicroBatch
from .matching import DistributionMatching


def annealed(ends: tuple[float, float], done: float) -> float:
    """Interpolate a weight linearly from the first to the second of `ends`; `done` is in [0, 1]."""
    return ends[0] + (ends[1] - ends[0]) * done


class OneStep(DistributionMatching[OneStepConfig]):
    """Distribution matching plus the distance to the few-step generator's sample from the same noise."""

    headline = ("generator/pair_distance", "generator/matching_gradient")

    def _generator(self, batch: MicroBatch) -> Loss:
        """Compute `w_d * ||G1(eps) - sg G4(eps)||^2 + w_m * L_dm`.

        The few-step generator G4 samples here, from the noise of the rollout; no pairs are stored.
        """
        settings = self.settings
        x_hat = self._rollout(batch)
        pair_generator = self.networks.pair_generator
        assert pair_generator is not None
        target = pair_generator.sample(
            batch.condition, self._noise("rollout", batch), lambda step: self._noise(f"pair-{step}", batch)
        )
        distance = F.mse_loss(x_hat.float(), target.float())
        matching = self._matching(batch, x_hat)
        done = self._round(batch) / max(1, self.config.updates - 1)
        pair_weight = annealed(settings.pair_weight, min(1.0, done))
        matching_weight = annealed(settings.matching_weight, min(1.0, done))
        value = pair_weight * distance + matching_weight * matching.value
        metrics = {
            **matching.metrics,
            "generator/pair_distance": distance.detach(),
            "generator/pair_weight": distance.new_tensor(pair_weight),
        }
        return self._total(batch, x_hat, Loss(value, metrics))

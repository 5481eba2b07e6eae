"""One-step distillation (MD Sec. 3.4; MD: MagicDistillation, arXiv 2503.13319).

The loss starts with regression on the samples of a few-step generator and moves to distribution matching.
"""

import torch.nn.functional as F

from ..config.methods import OneStepConfig
from .base import Loss, MicroBatch
from .matching import DistributionMatching


def annealed(ends: tuple[float, float], done: float) -> float:
    """Interpolate a weight linearly, and return its value at this moment of the run.

    Args:
        ends: the weights at the first and at the last update.
        done: finished share of the run, in [0, 1].
    """
    return ends[0] + (ends[1] - ends[0]) * done


class OneStep(DistributionMatching[OneStepConfig]):
    """The method `one_step`: distribution matching plus the distance to samples of a few-step generator.

    Both generators sample from the same noise.
    """

    headline = ("generator/pair_distance", "generator/matching_gradient")

    def _generator(self, batch: MicroBatch) -> Loss:
        """Return `w_d * mean((G1(eps) - G4(eps))^2) + w_m * L_dm`, where G1 is the generator that is trained.

        The few-step generator G4 samples here without gradient, from the noise of the rollout; no pairs are stored.
        L_dm is the matching loss. The weights w_d and w_m change over the run.
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

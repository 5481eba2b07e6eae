"""The budget in which all methods of the tables are equal: network calls.

A *call* passes one batch of clips forward through all blocks of the network. The backward pass is not a call; it is
counted apart, because a run's time depends on it. A *round* is one generator update with the updates of the other
networks before it.
"""

from dataclasses import dataclass
from typing import Any

from magicdistill_core.errors import ConfigError

from ...config.methods import DiscriminatorConfig, LCMConfig, MatchingConfig, OneStepConfig
from ...config.training import TrainConfig


@dataclass(frozen=True)
class Calls:
    """Calls of one batch, in units of a pass through all blocks.

    Attributes:
        forward: the network calls.
        backward: the passes of a gradient through the blocks.
    """

    forward: float
    backward: float = 0.0

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, count: float) -> "Calls":
        return Calls(count * self.forward, count * self.backward)


_SAMPLED = Calls(1)
_TRAINED = Calls(1, 1)


def calls_per_round(config: TrainConfig, blocks: tuple[int, int], pair_steps: int) -> Calls:
    """Return the mean number of calls of one round.

    The rollout of an N-step generator ends at a random level, so it makes (N + 1) / 2 calls on average. A call of the
    discriminator passes the double blocks of the frozen teacher and its own single block. It counts as that share of
    all blocks.

    Args:
        config: the training's configuration.
        blocks: number of double and of single blocks of the teacher.
        pair_steps: steps of the few-step generator whose samples `one_step` learns; no effect on other methods.

    Raises:
        ConfigError: if the method is not one of those that the tables compare.
    """
    method = config.method
    if isinstance(method, LCMConfig):
        # The student, the teacher's step, and the target's jump from there.
        return _TRAINED + _SAMPLED * 2
    if not isinstance(method, MatchingConfig):
        raise ConfigError(
            f"The calls of the method {method.name} are not counted. The tables compare lcm, dmd, dmd2, w2s and "
            f"one_step."
        )
    rollout = _rollout(config)
    fake = (rollout + _TRAINED) * method.fake_updates
    # The last call of the rollout has a gradient. Both scores have none.
    generator = rollout + Calls(0, 1) + _SAMPLED * (3 if method.uses_negative_prompt else 2)
    if method.supervision is not None:
        generator += _TRAINED
    if isinstance(method, OneStepConfig):
        generator += _SAMPLED * pair_steps
    if method.discriminator is not None:
        generator += _adversarial(method.discriminator, rollout, blocks)
    return fake + generator


def warmup_calls(config: TrainConfig) -> Calls:
    """Return the calls of all rounds before the first generator update, in which only the fake branch learns.

    Args:
        config: the training's configuration.
    """
    method = config.method
    if not isinstance(method, MatchingConfig):
        return Calls(0)
    return (_rollout(config) + _TRAINED) * (method.fake_updates * method.warmup_rounds)


def _rollout(config: TrainConfig) -> Calls:
    return _SAMPLED * ((config.schedule.steps + 1) / 2)


def _adversarial(settings: DiscriminatorConfig, rollout: Calls, blocks: tuple[int, int]) -> Calls:
    """Return what a discriminator adds to a round: its own updates, and its call in the generator's loss."""
    double, single = blocks
    share, own_block = (double + 1) / (double + single), 1 / (double + single)
    # Data, samples and, for the R1 penalty, perturbed data. The gradient passes only its own block.
    logits = Calls(share, own_block) * (3 if settings.r1 else 2)
    return (rollout + logits) * settings.updates + Calls(share, share)


def rounds_within(budget: float, warmup: Calls, calls: Calls) -> int:
    """Return the number of rounds whose calls are nearest to a budget, at least 1.

    Args:
        budget: number of network calls of the complete run.
        warmup: the calls before the first round.
        calls: the calls of one round.
    """
    return max(1, round((budget - warmup.forward) / calls.forward))


def blocks_of(shape: Any) -> tuple[int, int]:
    """Return the number of double and of single blocks of a HunyuanVideo network.

    Args:
        shape: the sizes of the network, `Checkpoint.shape`.

    Raises:
        ConfigError: if the network is of another architecture.
    """
    try:
        return shape.double_blocks, shape.single_blocks
    except AttributeError as error:
        raise ConfigError(
            f"The teacher has {shape}. The tables need a pocket teacher, which is a HunyuanVideo transformer."
        ) from error

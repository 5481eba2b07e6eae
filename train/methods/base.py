"""What a training method is: an order of updates, and a loss for each role."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from magicdistill_core.families.base import Condition, Family, StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.rollout import rollout

from ..config.methods import MethodConfig
from ..config.training import TrainConfig
from ..engines.engine import Engine
from ..engines.networks import Networks
from .draws import Draws

S = TypeVar("S", bound=MethodConfig)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward on one process sees.

    Attributes:
        condition: what the family made of the start images, for its network alone to understand.
        positions: places in the update's global batch.
        update: number of the optimizer update, over all roles.
        shape: of what noise, losses and samplers work on, `(C, T, H, W)`: a latent without the frames that the start
            image gives.
        read_latents: reads the clean latents of this shape from the dataset.
    """

    condition: Condition
    positions: list[int]
    update: int
    shape: tuple[int, ...]
    read_latents: Callable[[], Tensor]

    @cached_property
    def latents(self) -> Tensor:
        """The clean latents `[B, C, T, H, W]`, read when first asked for."""
        return self.read_latents()


@dataclass(frozen=True)
class Loss:
    """A differentiable value, and scalars for the log; or the first part of a loss, each with a graph of its own.

    Parts are for terms that ask the network again: what a large network holds for one backward is much of the memory
    that training takes, so that two such graphs at a time would not fit.

    Attributes:
        value: of this part; the loss is the sum over the parts.
        metrics: of this part, under names of its own.
        after: makes the next part; called once the backward of this one has freed its graph. None ends the loss.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    after: Callable[[], "Loss"] | None = None

    def backward(self, engine: Engine, *, last: bool) -> dict[str, Tensor]:
        """Backward of all parts, one after another, and their metrics; `last` as for `Engine.backward`."""
        part, metrics = self, dict(self.metrics)
        while part.after is not None:
            engine.backward(part.value, last=False)
            part = part.after()
            metrics |= part.metrics
        engine.backward(part.value, last=last)
        return metrics


class Method(ABC, Generic[S]):
    """One method over the shared loop. Without state of its own: what must survive a resume is in the engines."""

    # Metrics that the progress bar shows.
    headline: ClassVar[tuple[str, ...]]

    def __init__(
        self, settings: S, config: TrainConfig, networks: Networks, draws: Draws, device: torch.device
    ) -> None:
        self.settings = settings
        self.config = config
        self.schedule = config.schedule
        self.sigmas = few_step_sigmas(config.schedule.steps, config.schedule.shift)
        self.networks = networks
        self.draws = draws
        self.device = device

    @property
    @abstractmethod
    def order(self) -> tuple[str, ...]:
        """Who is updated, in order, in one round; a round is one update of the generator."""

    @abstractmethod
    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """The loss of one role on one micro-batch; its backward reaches that role's parameters alone."""

    def shown(self, images: StartImage, update: int, positions: list[int]) -> StartImage:
        """The start images as the network is to see them: as they are, unless a method wants it otherwise."""
        return images

    def micro_batch(
        self,
        family: Family,
        images: StartImage,
        shape: tuple[int, ...],
        update: int,
        positions: list[int],
        read_latents: Callable[[], Tensor],
    ) -> MicroBatch:
        """What the family makes of samples.

        Args:
            shape: of one latent, `(16, T, H, W)`.
            read_latents: reads the latents `[B, 16, T, H, W]`.
        """
        condition = family.condition(self.shown(images, update, positions), shape[1])
        return MicroBatch(condition, positions, update, family.free_shape(shape), lambda: family.free(read_latents()))

    def _noise(self, purpose: str, batch: MicroBatch) -> Tensor:
        """Noise `[B, C, T, H, W]`, its own for each purpose."""
        return self.draws.noise(purpose, batch.update, batch.positions, batch.shape).to(self.device)

    def _level(self, purpose: str, batch: MicroBatch) -> Tensor:
        """Noise levels `[B]` of a loss."""
        return self.draws.sigma(purpose, batch.update, batch.positions, self.schedule.shift).to(self.device)

    def _rollout(self, batch: MicroBatch) -> Tensor:
        """The generator's sample `x_hat` from a random level of its schedule."""
        exit_index = self.draws.exit_index(batch.update, self.schedule.steps)
        fresh = []
        if self.schedule.sampler == "renoise":
            fresh = [self._noise(f"renoise-{step}", batch) for step in range(exit_index)]
        return rollout(
            self.networks.generator_velocity(batch.condition),
            self._noise("rollout", batch),
            self.sigmas,
            exit_index,
            self.schedule.sampler,
            fresh,
        )

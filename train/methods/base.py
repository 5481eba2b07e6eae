"""The base class of training methods: an order of updates and a loss per role.

The trained *roles* are `generator`, `fake` (the branch of the fake score) and `discriminator`; each has its own engine
and optimizer. An *update* is one optimizer step of one role. A *round* is a fixed sequence of updates with exactly one
generator update: for example five updates of the fake branch, then one of the generator.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.objectives.rollout import rollout

from ..config.methods import MethodConfig
from ..config.training import TrainConfig
from ..engines.engine import Engine
from ..engines.networks import Networks
from ..networks.prompts import Captioned, Conditioning, PromptBatch
from .draws import Draws

S = TypeVar("S", bound=MethodConfig)


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass on one process.

    Attributes:
        condition: the family's conditioning on the start images, which only the family's network interprets; with
            captions also the prompts of the samples.
        positions: the samples' positions in the update's global batch, which covers all processes and micro-batches.
        update: number of the update, counted over all roles: from 0, and negative in the fake warm-up.
        shape: `(C, T, H, W)` of the noise, losses and samplers: a latent without the frames that the start image
            provides.
        read_latents: reads the clean latents `[B, C, T, H, W]` of this shape from the dataset.
    """

    condition: Conditioning
    positions: list[int]
    update: int
    shape: tuple[int, ...]
    read_latents: Callable[[], Tensor]

    @cached_property
    def latents(self) -> Tensor:
        """The clean latents `[B, C, T, H, W]`, read at the first access."""
        return self.read_latents()


@dataclass(frozen=True)
class Loss:
    """A loss or its first part: a differentiable value and scalars for the log.

    The loss is the sum of its parts. Each part has a separate graph, and its backward runs before the next part is
    computed. A term that calls the trained network a second time becomes a part, because two graphs of a large network
    would not fit into memory together.

    Attributes:
        value: the value of this part.
        metrics: the metrics of this part; the parts use different names.
        after: computes the next part; called after the backward of this part has freed its graph. None for the last
            part.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    after: Callable[[], "Loss"] | None = None

    def backward(self, engine: Engine, *, last: bool) -> dict[str, Tensor]:
        """Run the backward pass of all parts, one after another.

        Args:
            engine: the engine of the trained role.
            last: whether this is the last micro-batch before `Engine.step`.

        Returns:
            The metrics of all parts, by name.
        """
        part, metrics = self, dict(self.metrics)
        while part.after is not None:
            engine.backward(part.value, last=False)
            part = part.after()
            metrics |= part.metrics
        engine.backward(part.value, last=last)
        return metrics


class Method(ABC, Generic[S]):
    """A training method.

    It has no state: everything that must survive a resume is in the engines.
    """

    # The metrics in the progress bar.
    headline: ClassVar[tuple[str, ...]]

    def __init__(
        self, settings: S, config: TrainConfig, networks: Networks, draws: Draws, device: torch.device
    ) -> None:
        """Store the parts of the training that losses use.

        Args:
            settings: the configuration's section `method`.
            config: the complete configuration.
            networks: the networks and engines of the training.
            draws: the random draws of the run.
            device: the device of the networks.
        """
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
        """The roles to update in one round, in this order. A round contains exactly one generator update."""

    @property
    def warmup_order(self) -> tuple[str, ...]:
        """The roles to update in one round before the first generator update; empty for a method without these."""
        return ()

    @abstractmethod
    def loss(self, role: str, batch: MicroBatch) -> Loss:
        """Compute the loss of one role on one micro-batch; its gradients reach only the parameters of that role.

        Args:
            role: the role's name, one of `order`.
            batch: the micro-batch.
        """

    def agreement(self, batch: MicroBatch) -> Tensor | None:
        """Return how well the training signal in the network's precision agrees with fp32; a collective call.

        Args:
            batch: the micro-batch to measure on.

        Returns:
            A cosine, a scalar; None if the method has no difference of scores. It is the default.
        """
        return None

    def prepare_images(self, images: StartImage, update: int, positions: list[int]) -> StartImage:
        """Return the start images as the network receives them; unchanged by default.

        Args:
            images: start images from the dataset, on the training's device.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the update's global batch.
        """
        return images

    def micro_batch(
        self,
        family: Family,
        images: StartImage,
        shape: tuple[int, ...],
        update: int,
        positions: list[int],
        read_latents: Callable[[], Tensor],
        prompts: PromptBatch | None = None,
        negatives: PromptBatch | None = None,
    ) -> MicroBatch:
        """Build a micro-batch with the family's conditioning.

        Args:
            family: the teacher's family.
            images: the start images.
            shape: `(16, T, H, W)` of one latent.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the update's global batch.
            read_latents: reads the latents `[B, 16, T, H, W]` from the dataset.
            prompts: the prompts of the samples; None if all samples have the null prompt.
            negatives: the prompts of the samples' unconditional calls; None uses the negative prompt of the networks.
        """
        start = family.condition(self.prepare_images(images, update, positions), shape[1])
        condition = start if prompts is None else Captioned(start, prompts, negatives)
        return MicroBatch(condition, positions, update, family.free_shape(shape), lambda: family.free(read_latents()))

    def _noise(self, purpose: str, batch: MicroBatch) -> Tensor:
        """Draw noise `[B, C, T, H, W]`; each purpose has independent noise."""
        return self.draws.noise(purpose, batch.update, batch.positions, batch.shape).to(self.device)

    def _level(self, purpose: str, batch: MicroBatch) -> Tensor:
        """Draw the noise levels `[B]` of a loss."""
        return self.draws.sigma(purpose, batch.update, batch.positions, self.schedule.shift).to(self.device)

    def _rollout(self, batch: MicroBatch) -> Tensor:
        """Sample `x_hat` from the generator, up to a random exit level of its schedule."""
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

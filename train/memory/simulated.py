"""One update of each role of a training on tensors without data: what it holds in memory, and what it computes.

The networks are built on PyTorch's `meta` device. They are called as in a training, by the method's own code, but
without DeepSpeed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import Velocity

from ..config.training import TrainConfig
from ..data.dataset_index import IMAGE_FEATURES, IMAGE_LATENTS, LATENTS
from ..distributed import ContextGroup
from ..engines.engine import Engine, NetworkCalls, NetworkEngine, has_fp32_gradients
from ..engines.networks import Factories, Networks, build_networks
from ..engines.teacher import Teacher
from ..methods import MicroBatch, build_method
from ..methods.draws import Draws
from ..networks.discriminator import Discriminator
from ..networks.prompts import Conditioning, PromptBatch
from ..networks.roles import RoleNetwork
from .bytes_held import META, BytesHeld, fused_attention
from .work import Work, WorkCount


class SimulatedNetworkEngine(NetworkEngine):
    """The engine of a network without DeepSpeed.

    Each gradient is freed as soon as it is computed, because DeepSpeed moves it into its own buffer.
    """

    def __init__(
        self, network: RoleNetwork, parameters: list[nn.Parameter], config: TrainConfig, *settings: object
    ) -> None:
        self.network = network
        self.module = network
        self.fp32_gradients = has_fp32_gradients(config, network)
        # Backward passes in one micro-batch.
        self.backwards = 0
        self.parameters = _as_deepspeed_holds(network, parameters, config)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.backwards += 1
        loss.backward()


class SimulatedDiscriminatorEngine(Engine):
    """The engine of a discriminator without DeepSpeed."""

    backwards = 1

    def __init__(self, discriminator: Discriminator, config: TrainConfig, *settings: object) -> None:
        self.engine = SimpleNamespace(module=discriminator)
        self.fp32_gradients = has_fp32_gradients(config, discriminator)
        self.parameters = _as_deepspeed_holds(discriminator, list(discriminator.parameters()), config)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()


class _FrozenNetwork(NetworkCalls):
    """A frozen network without DeepSpeed."""

    def __init__(self, network: RoleNetwork, config: TrainConfig) -> None:
        self.network = network.requires_grad_(False)
        self.module = network


class _ShortestRollouts(Draws):
    """Draws whose rollouts all stop at the first level.

    Attributes:
        rollouts: number of rollouts since it was last set to 0.
    """

    rollouts = 0

    def exit_index(self, update: int, levels: int) -> int:
        self.rollouts += 1
        return 0


@dataclass(frozen=True)
class SimulatedUpdate:
    """One micro-batch of one role.

    Attributes:
        peak: the largest number of bytes that its network calls hold at the same time.
        work: what it computes, with rollouts that stop at the first level.
        rollouts: number of its rollouts.
    """

    peak: int
    work: WorkCount
    rollouts: int


class Simulation:
    """The networks of a training without data, and one update of each of its roles.

    Attributes:
        config: the training's configuration.
        networks: the networks of the training, on `meta`.
        modules: the modules of all networks, which may share weights.
        discriminators: the modules of the discriminators.
        updates: one micro-batch of each role, by its name.
    """

    def __init__(
        self, config: TrainConfig, teacher: Teacher, shapes: Mapping[str, tuple[int, ...]], tokens: int | None = None
    ) -> None:
        """Build the networks and make one update of each role.

        Args:
            config: the training's configuration.
            teacher: the teacher, loaded on `meta` or on a device.
            shapes: the shapes of one sample's tensors by name, from `sample_shapes`.
            tokens: tokens of the longest prompt, for a run with captions; None takes the most that the teacher's text
                encoders make (`Architecture.prompt_tokens`).

        Raises:
            ConfigError: if the method does not suit the teacher.
        """
        factories = Factories(SimulatedNetworkEngine, SimulatedDiscriminatorEngine, _FrozenNetwork, _context_group)
        self.config = config
        self.networks = build_networks(config, teacher.checkpoint, teacher.prompt, META, teacher.negative, factories)
        self.modules, self.discriminators = _modules(self.networks)
        self._teacher = teacher
        self._shapes = shapes
        self._tokens = tokens or teacher.checkpoint.architecture.prompt_tokens
        self._draws = _ShortestRollouts(config.seed)
        self._method = build_method(config, self.networks, self._draws, META)
        # The order of a round has a role as often as it is updated in the round.
        self.order = self._method.order
        self.warmup_order = self._method.warmup_order
        self.updates = {role: self._update(role) for role in dict.fromkeys(self.order)}

    @cached_property
    def sampling_step(self) -> WorkCount:
        """The work of one step of the generator's sampler, for a micro-batch."""
        return self.forward(lambda networks, condition: networks.generator_velocity(condition))

    def forward(self, velocity: Callable[[Networks, Conditioning], Velocity]) -> WorkCount:
        """Return the work of one call of a network without gradient, for a micro-batch.

        Args:
            velocity: chooses the velocity function of the networks, for a conditioning.
        """
        with Work(self._tensors()) as work, fused_attention(), torch.no_grad():
            batch = self._micro_batch()
            x = torch.empty(len(batch.positions), *batch.shape, device=META)
            velocity(self.networks, batch.condition)(x, x.new_empty(len(batch.positions)))
        return work.count

    def engines(self) -> list[SimulatedNetworkEngine | SimulatedDiscriminatorEngine]:
        """Return the engines of the trained networks, in the order of their roles."""
        engines = []
        for engine in self.networks.engines.values():
            assert isinstance(engine, SimulatedNetworkEngine | SimulatedDiscriminatorEngine)
            engines.append(engine)
        return engines

    def _tensors(self) -> Iterator[Tensor]:
        return tensors_of([*self.modules, *self.discriminators])

    def _update(self, role: str) -> SimulatedUpdate:
        self._draws.rollouts = 0
        with BytesHeld(self._tensors()) as memory, Work(self._tensors()) as work, fused_attention():
            self._method.loss(role, self._micro_batch()).backward(self.networks.engine(role), last=True)
        return SimulatedUpdate(memory.peak, work.count, self._draws.rollouts)

    def _micro_batch(self) -> MicroBatch:
        count = self.config.data.micro_batch

        def empty(name: str) -> Tensor:
            return torch.empty(count, *self._shapes[name], device=META)

        images = StartImage(empty(IMAGE_LATENTS), empty(IMAGE_FEATURES) if IMAGE_FEATURES in self._shapes else None)
        return self._method.micro_batch(
            self._teacher.checkpoint.family(),
            images,
            self._shapes[LATENTS],
            0,
            list(range(count)),
            lambda: empty(LATENTS),
            _longest_prompts(self._teacher, count, self._tokens) if self.config.data.captions else None,
        )


def tensors_of(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Yield the parameters and buffers of modules.

    Args:
        modules: the modules. A tensor of several of them comes several times.
    """
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _modules(networks: Networks) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the modules of all networks, which may share weights, and the modules of the discriminators."""
    modules: list[nn.Module] = []
    discriminators: list[nn.Module] = []
    for engine in networks.engines.values():
        if isinstance(engine, NetworkEngine):
            modules.append(engine.network)
        else:
            discriminators.append(engine.engine.module)
    pair_generator = networks.pair_generator
    frozen = (networks.base, None if pair_generator is None else pair_generator.network)
    modules += [calls.network for calls in frozen if calls is not None]
    return modules, discriminators


def _as_deepspeed_holds(module: nn.Module, parameters: list[nn.Parameter], config: TrainConfig) -> list[nn.Parameter]:
    """Imitate the effects of DeepSpeed on memory: cast the weights to the precision and free gradients at once."""
    if config.model.precision == "bf16":
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(drop)
    return parameters


def _context_group(size: int) -> ContextGroup | None:
    """Return a group without processes, in which the first process has the most tokens."""
    return None if size == 1 else ContextGroup(size, 0, None)


def _longest_prompts(teacher: Teacher, count: int, tokens: int) -> PromptBatch:
    """Return prompts without data; several of them have a mask, as prompts of different lengths have."""
    null = teacher.prompt
    text = torch.empty(count, tokens, null.text_states.shape[2], device=META)
    shown = torch.ones(count, tokens, device=META, dtype=torch.bool) if count > 1 else None
    return PromptBatch(text, shown, None if null.pooled is None else null.pooled.to(META).expand(count, -1))

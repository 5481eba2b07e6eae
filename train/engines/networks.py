"""The networks and engines of a training, built according to its method.

A *branch* is a LoRA (zeta) on the frozen teacher (theta), used at a weight. A *role* is a branch at a weight, such as
the fake score `theta + 1.0 * zeta` (see `networks.roles`). MD: MagicDistillation (arXiv 2503.13319).

Mode `full`: the generator starts as a copy of the teacher. The fake branch, if the method has one, is added to a second
copy, which is frozen.
Mode `lora`: the generator branch, the fake branch, the real score and the teacher share one frozen base.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.flow import Velocity
from magicdistill_core.objectives.adversarial import Logits

from ..config.methods import DISCRIMINATOR, FAKE, GENERATOR, MatchingConfig
from ..config.sections import SEEDS, OptimizerConfig
from ..config.training import TrainConfig
from ..distributed import ContextGroup, context_group
from ..networks.compiling import compile_blocks
from ..networks.discriminator import Discriminator
from ..networks.families import kind_of
from ..networks.int8_base import quantise_base
from ..networks.network import load_network
from ..networks.prompts import Conditioning
from ..networks.roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations
from .engine import DiscriminatorEngine, Engine, FrozenNetwork, NetworkCalls, NetworkEngine
from .pair_generator import PairGenerator, load_pair_generator


@dataclass(frozen=True)
class Networks:
    """The engines of all trained roles, and the network of each role.

    Attributes:
        engines: one engine per trained role, by the role's name (`generator`, `fake`, `discriminator`); the generator
            always has one.
        generator_role: the branch and weight with which the generator's network is called.
        base: the network with the frozen teacher's weights; None if the method needs no teacher.
        pair_generator: the frozen few-step generator from the method's `start_file`; None without one.
    """

    engines: dict[str, Engine]
    generator_role: Role
    base: NetworkCalls | None
    pair_generator: PairGenerator | None = None

    @property
    def generator(self) -> NetworkEngine:
        """The engine of the generator."""
        return self._network_engine(GENERATOR)

    @property
    def fake(self) -> NetworkEngine:
        """The engine of the fake branch; only for methods that train one."""
        return self._network_engine(FAKE)

    def engine(self, name: str) -> Engine:
        """Return the engine of a trained role, by its name."""
        return self.engines[name]

    def generator_velocity(self, condition: Conditioning, *, guidance: Tensor | None = None) -> Velocity:
        """Return the generator's velocity function `(x, sigma) -> velocity`, with gradients where they are enabled.

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
            guidance: guidance scales `[B]` for a network with a guidance embedding; None uses
                `model.embedded_guidance`.
        """
        return self.generator.velocity(condition, self.generator_role, guidance=guidance)

    def score(self, condition: Conditioning, weight: float, *, unconditional: bool = False) -> Velocity:
        """Return the velocity function `(x, sigma) -> velocity` of `theta + weight * zeta` (MD Eq. 5, 6).

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
            weight: weight of the branch: `a_strong` for the fake score, `a_weak` for the real score.
            unconditional: use the negative prompt instead of the prompt.
        """
        return self.fake.velocity(condition, Role(FAKE, weight), unconditional=unconditional)

    def teacher(
        self, condition: Conditioning, *, unconditional: bool = False, guidance: Tensor | None = None
    ) -> Velocity:
        """Return the velocity function `(x, sigma) -> velocity` of the frozen teacher theta; call it without gradients.

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
            unconditional: use the negative prompt instead of the prompt.
            guidance: guidance scales `[B]` for a network with a guidance embedding; None uses
                `model.embedded_guidance`.
        """
        return self._teacher.velocity(condition, BASE, unconditional=unconditional, guidance=guidance)

    def discriminator_logits(self, condition: Conditioning) -> Logits:
        """Return a function `(x, sigma) -> logits [B]`: the discriminator on features of the frozen teacher (MD 3.4).

        Gradients flow through the features to `x` only, not to the teacher's weights.

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
        """
        discriminator = self.engines[DISCRIMINATOR].engine.module

        def logits(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.set_grad_enabled(x.requires_grad):
                features = self._teacher.features(x, sigma, condition)
            result: Tensor = discriminator(features)
            return result

        return logits

    @property
    def _teacher(self) -> NetworkCalls:
        assert self.base is not None
        return self.base

    def _network_engine(self, name: str) -> NetworkEngine:
        engine = self.engines[name]
        assert isinstance(engine, NetworkEngine)
        return engine


@dataclass(frozen=True)
class Factories:
    """Constructors that wrap networks into engines.

    The defaults use DeepSpeed; the memory estimate replaces them.

    Attributes:
        network: as `NetworkEngine`.
        discriminator: as `DiscriminatorEngine`.
        frozen: as `FrozenNetwork`.
        context: as `context_group`.
    """

    network: Callable[..., NetworkEngine] = NetworkEngine
    discriminator: Callable[[Discriminator, TrainConfig, OptimizerConfig], Engine] = DiscriminatorEngine
    frozen: Callable[[RoleNetwork, TrainConfig], NetworkCalls] = FrozenNetwork
    context: Callable[[int], ContextGroup | None] = context_group


def build_networks(
    config: TrainConfig,
    teacher: Checkpoint,
    prompt: NullPrompt,
    device: torch.device,
    negative: NullPrompt | None = None,
    factories: Factories = Factories(),
) -> Networks:
    """Load the teacher once or twice, add the branches, and wrap the trained networks into engines.

    Args:
        config: the training's configuration.
        teacher: the teacher's weights, prepared for the method (see `engines.teacher`).
        prompt: the prompt of all conditional calls.
        device: where the networks are built; `meta` builds them without weights.
        negative: the prompt of unconditional calls; None if the method makes none.
        factories: the constructors of engines; the default ones use DeepSpeed.

    Returns:
        The networks and engines of all roles.

    Raises:
        ConfigError: if the method does not suit the teacher.
    """
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    method, model = config.method, config.model
    shared, guidance = model.mode == "lora", model.embedded_guidance
    start, pair_generator = teacher, None
    group = factories.context(config.context_parallel)

    def load(checkpoint: Checkpoint) -> Any:
        network = load_network(checkpoint, dtype, device)
        if group is not None:
            kind_of(network).share(network, group)
        return network

    if method.start_file is not None:
        start, recipe = load_pair_generator(method.start_file, teacher, "meta" if device.type == "meta" else "cpu")
        few_step = factories.frozen(RoleNetwork(load(start), prompt, None, guidance), config)
        pair_generator = PairGenerator(few_step, recipe)
    base = load(teacher) if shared or FAKE in method.trained or method.uses_teacher else None
    # Built before the branches are added: the discriminator copies a block, and the copy must have no branches.
    discriminator = None
    if base is not None and DISCRIMINATOR in method.trained:
        discriminator = Discriminator(base, (config.seed + 2) % SEEDS, recompute=model.activation_checkpointing)
    if base is not None and model.base_int8:
        quantise_base(base, prompt)
    if base is not None and shared:
        add_branch(base, GENERATOR, model.generator_branch.rank, model.generator_branch.alpha, config.seed)
    if base is not None and FAKE in method.trained:
        add_branch(base, FAKE, model.fake_branch.rank, model.fake_branch.alpha, (config.seed + 1) % SEEDS)
    if base is not None and shared:
        trained = branch_parameters(base, GENERATOR)
        generator_network, role = RoleNetwork(base, prompt, negative, guidance), Role(GENERATOR, 1.0)
    else:
        student = load(start)
        trained = list(student.parameters())
        generator_network, role = RoleNetwork(student, prompt, negative, guidance), BASE
    for network in {id(n): n for n in (base, generator_network.transformer) if n is not None}.values():
        network.train()
        if model.compile and device.type != "meta":
            compile_blocks(network)
        if model.activation_checkpointing:
            checkpoint_activations(network, model.keep_attention)
    generator = factories.network(generator_network, trained, config, config.generator_optimizer)
    engines: dict[str, Engine] = {GENERATOR: generator}
    teacher_calls: NetworkCalls | None = generator if shared else None
    if base is not None and isinstance(method, MatchingConfig):
        assert config.fake_optimizer is not None
        teacher_calls = engines[FAKE] = factories.network(
            RoleNetwork(base, prompt, negative, guidance),
            branch_parameters(base, FAKE),
            config,
            config.fake_optimizer,
            method.fake_loss_scale,
        )
        if discriminator is not None and method.discriminator is not None:
            engines[DISCRIMINATOR] = factories.discriminator(discriminator, config, method.discriminator.optimizer)
    elif base is not None and not shared:
        teacher_calls = factories.frozen(RoleNetwork(base, prompt, negative, guidance), config)
    return Networks(engines, role, teacher_calls, pair_generator)

"""Who plays which role: the engines of a training, made as its method needs them.

Mode `full`: the generator is a copy of the teacher; the fake branch, if there is one, sits on a second, frozen one.
Mode `lora`: generator branch, fake branch, real score and teacher share one frozen base.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import Condition, NullPrompt
from magicdistill_core.flow import Velocity
from magicdistill_core.objectives.adversarial import Logits

from ..config.methods import DISCRIMINATOR, FAKE, GENERATOR, MatchingConfig
from ..config.sections import OptimizerConfig
from ..config.training import TrainConfig
from ..networks.discriminator import Discriminator
from ..networks.network import load_network
from ..networks.roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations
from .engine import DiscriminatorEngine, Engine, FrozenNetwork, NetworkCalls, NetworkEngine
from .pair_generator import PairGenerator, load_pair_generator


@dataclass(frozen=True)
class Networks:
    """The engines, and who plays which role with which weights.

    Attributes:
        engines: by name, one for each role that the method trains; the generator's is always there.
        generator_role: the role in which the generator's network is the generator.
        base: who holds the frozen teacher; None where the method needs none.
        pair_generator: the frozen generator that the method's `start_file` names.
    """

    engines: dict[str, Engine]
    generator_role: Role
    base: NetworkCalls | None
    pair_generator: PairGenerator | None = None

    @property
    def generator(self) -> NetworkEngine:
        return self._network_engine(GENERATOR)

    @property
    def fake(self) -> NetworkEngine:
        return self._network_engine(FAKE)

    def engine(self, name: str) -> Engine:
        return self.engines[name]

    def generator_velocity(self, condition: Condition, *, guidance: Tensor | None = None) -> Velocity:
        """The generator, with gradient where gradients are enabled; `guidance` as for `NetworkCalls.velocity`."""
        return self.generator.velocity(condition, self.generator_role, guidance=guidance)

    def score(self, condition: Condition, weight: float, *, unconditional: bool = False) -> Velocity:
        """`theta + weight * zeta`: the fake score at the strong weight, the real one at the weak (MD Eq. 5, 6)."""
        return self.fake.velocity(condition, Role(FAKE, weight), unconditional=unconditional)

    def teacher(self, condition: Condition, *, unconditional: bool = False, guidance: Tensor | None = None) -> Velocity:
        """The frozen teacher theta; to be asked without gradient, `guidance` as for `NetworkCalls.velocity`."""
        return self._teacher.velocity(condition, BASE, unconditional=unconditional, guidance=guidance)

    def discriminator_logits(self, condition: Condition) -> Logits:
        """The discriminator on the features of the frozen teacher (MD 3.4), which get gradients to `x` alone."""
        discriminator = self.engines[DISCRIMINATOR].engine.module

        def logits(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.set_grad_enabled(x.requires_grad):
                features = self._teacher.features(x, sigma, condition)
            answer: Tensor = discriminator(features)
            return answer

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
    """What wraps networks into engines, as the classes of these names in `engines` do."""

    network: Callable[..., NetworkEngine] = NetworkEngine
    discriminator: Callable[[Discriminator, TrainConfig, OptimizerConfig], Engine] = DiscriminatorEngine
    frozen: Callable[[RoleNetwork, TrainConfig], NetworkCalls] = FrozenNetwork


def build_networks(
    config: TrainConfig,
    teacher: Checkpoint,
    prompt: NullPrompt,
    device: torch.device,
    negative: NullPrompt | None = None,
    factories: Factories = Factories(),
) -> Networks:
    """Load the teacher once or twice, add the branches, and wrap what is trained into engines.

    Args:
        factories: DeepSpeed's by default.

    Raises:
        ConfigError: if the method does not suit the teacher.
    """
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    method, model = config.method, config.model
    shared, guidance = model.mode == "lora", model.embedded_guidance
    start, pair_generator = teacher, None
    if method.start_file is not None:
        start, recipe = load_pair_generator(method.start_file, teacher, "meta" if device.type == "meta" else "cpu")
        maker = factories.frozen(RoleNetwork(load_network(start, dtype, device), prompt, None, guidance), config)
        pair_generator = PairGenerator(maker, recipe)
    base = load_network(teacher, dtype, device) if shared or FAKE in method.trained or method.uses_teacher else None
    # Before branches are added, so that its copy of a block has none.
    discriminator = None
    if base is not None and DISCRIMINATOR in method.trained:
        discriminator = Discriminator(base, config.seed + 2, recompute=model.activation_checkpointing)
    if base is not None and shared:
        add_branch(base, GENERATOR, model.generator_branch.rank, model.generator_branch.alpha, config.seed)
    if base is not None and FAKE in method.trained:
        add_branch(base, FAKE, model.fake_branch.rank, model.fake_branch.alpha, config.seed + 1)
    if base is not None and shared:
        trained = branch_parameters(base, GENERATOR)
        generator_network, role = RoleNetwork(base, prompt, negative, guidance), Role(GENERATOR, 1.0)
    else:
        student = load_network(start, dtype, device)
        trained = list(student.parameters())
        generator_network, role = RoleNetwork(student, prompt, negative, guidance), BASE
    for network in {id(n): n for n in (base, generator_network.transformer) if n is not None}.values():
        network.train()
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

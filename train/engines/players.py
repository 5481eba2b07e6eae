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
from magicdistill_core.objectives.adversarial import Critic

from ..config.methods import DISCRIMINATOR, FAKE, GENERATOR, MatchingConfig
from ..config.sections import OptimizerConfig
from ..config.training import TrainConfig
from ..networks.discriminator import Discriminator
from ..networks.network import load_network
from ..networks.roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations
from .engine import DiscriminatorEngine, Engine, Frozen, Holder, NetworkEngine
from .pair_generator import FewStep, load_few_step


@dataclass(frozen=True)
class Players:
    """The engines, and who plays which role with which weights.

    Attributes:
        engines: by name, as the method's `players` say; the generator's is always there.
        generator_role: the role in which the generator's network is the generator.
        base: who holds the frozen teacher; None where the method needs none.
        few_step: the frozen generator that the method's `start_file` names.
    """

    engines: dict[str, Engine]
    generator_role: Role
    base: Holder | None
    few_step: FewStep | None = None

    @property
    def generator(self) -> NetworkEngine:
        return self._network_engine(GENERATOR)

    @property
    def fake(self) -> NetworkEngine:
        return self._network_engine(FAKE)

    def engine(self, name: str) -> Engine:
        return self.engines[name]

    def generator_velocity(self, condition: Condition, *, guidance: Tensor | None = None) -> Velocity:
        """The generator, with gradient where gradients are enabled; `guidance` as for `Holder.velocity`."""
        return self.generator.velocity(condition, self.generator_role, guidance=guidance)

    def score(self, condition: Condition, weight: float, *, unconditional: bool = False) -> Velocity:
        """`theta + weight * zeta`: the fake score at the strong weight, the real one at the weak (MD Eq. 5, 6)."""
        return self.fake.velocity(condition, Role(FAKE, weight), unconditional=unconditional)

    def teacher(self, condition: Condition, *, unconditional: bool = False, guidance: Tensor | None = None) -> Velocity:
        """The frozen teacher theta; to be asked without gradient, `guidance` as for `Holder.velocity`."""
        return self._holder.velocity(condition, BASE, unconditional=unconditional, guidance=guidance)

    def critic(self, condition: Condition) -> Critic:
        """The discriminator on the features of the frozen teacher (MD 3.4), which get gradients to `x` alone."""
        judge = self.engines[DISCRIMINATOR].engine.module

        def logits(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.set_grad_enabled(x.requires_grad):
                features = self._holder.features(x, sigma, condition)
            answer: Tensor = judge(features)
            return answer

        return logits

    @property
    def _holder(self) -> Holder:
        assert self.base is not None
        return self.base

    def _network_engine(self, name: str) -> NetworkEngine:
        engine = self.engines[name]
        assert isinstance(engine, NetworkEngine)
        return engine


@dataclass(frozen=True)
class Makers:
    """What wraps networks into players, as the classes of these names in `engines` do."""

    network: Callable[..., NetworkEngine] = NetworkEngine
    discriminator: Callable[[Discriminator, TrainConfig, OptimizerConfig], Engine] = DiscriminatorEngine
    frozen: Callable[[RoleNetwork, TrainConfig], Holder] = Frozen


def build_players(
    config: TrainConfig,
    teacher: Checkpoint,
    prompt: NullPrompt,
    device: torch.device,
    negative: NullPrompt | None = None,
    makers: Makers = Makers(),
) -> Players:
    """Load the teacher once or twice, add the branches, and wrap what is trained into engines.

    Args:
        makers: DeepSpeed's by default.

    Raises:
        ConfigError: if the method does not suit the teacher.
    """
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    method, model = config.method, config.model
    shared, guidance = model.mode == "lora", model.embedded_guidance
    start, few_step = teacher, None
    if method.start_file is not None:
        start, recipe = load_few_step(method.start_file, teacher, "meta" if device.type == "meta" else "cpu")
        maker = makers.frozen(RoleNetwork(load_network(start, dtype, device), prompt, None, guidance), config)
        few_step = FewStep(maker, recipe)
    base = load_network(teacher, dtype, device) if shared or FAKE in method.players or method.uses_teacher else None
    # Before branches are added, so that its copy of a block has none.
    judge = None
    if base is not None and DISCRIMINATOR in method.players:
        judge = Discriminator(base, config.seed + 2, recompute=model.activation_checkpointing)
    if base is not None and shared:
        add_branch(base, GENERATOR, model.generator_branch.rank, model.generator_branch.alpha, config.seed)
    if base is not None and FAKE in method.players:
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
    generator = makers.network(generator_network, trained, config, config.generator_optimizer)
    engines: dict[str, Engine] = {GENERATOR: generator}
    holder: Holder | None = generator if shared else None
    if base is not None and isinstance(method, MatchingConfig):
        assert config.fake_optimizer is not None
        holder = engines[FAKE] = makers.network(
            RoleNetwork(base, prompt, negative, guidance),
            branch_parameters(base, FAKE),
            config,
            config.fake_optimizer,
            method.fake_loss_scale,
        )
        if judge is not None and method.discriminator is not None:
            engines[DISCRIMINATOR] = makers.discriminator(judge, config, method.discriminator.optimizer)
    elif base is not None and not shared:
        holder = makers.frozen(RoleNetwork(base, prompt, negative, guidance), config)
    return Players(engines, role, holder, few_step)

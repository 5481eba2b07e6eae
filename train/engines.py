"""The DeepSpeed engines of a training: the generator, and what else its method trains beside it.

Mode `full`: the generator is a copy of the teacher; the fake branch, if there is one, sits on a second, frozen one.
Mode `lora`: generator branch, fake branch, real score and teacher share one frozen base.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
from torch import Tensor, nn

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.hunyuan_video import NullPrompt
from magicdistill_core.flow import Velocity

from .config import TrainConfig
from .distributed import is_main
from .method_config import FAKE, GENERATOR
from .network import load_network
from .roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations
from .section import OptimizerConfig


def deepspeed_config(config: TrainConfig, clip: float) -> dict[str, Any]:
    """DeepSpeed's settings for one engine whose gradients are clipped to a norm."""
    stage = config.zero.stage
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
        if config.model.mode == "lora":
            # Both engines fetch the shards of the one base; a shard that one prefetches is in flight for the other.
            zero["stage3_prefetch_bucket_size"] = 0
    return {
        "train_micro_batch_size_per_gpu": config.data.micro_batch,
        "gradient_accumulation_steps": config.data.accumulation,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.precision == "bf16"},
        # The optimizers are ours (plain AdamW), on any device.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


class Engine:
    """One trained player: its DeepSpeed engine, its optimizer's warm-up, and the loss scale of its updates."""

    def __init__(
        self,
        network: RoleNetwork,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        optimizer: OptimizerConfig,
        loss_scale: float = 1.0,
    ) -> None:
        self.network = network
        self.loss_scale = loss_scale
        self._settings = optimizer
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network,
            model_parameters=parameters,
            optimizer=torch.optim.AdamW(
                parameters,
                lr=optimizer.lr,
                betas=optimizer.betas,
                eps=optimizer.eps,
                weight_decay=optimizer.weight_decay,
                # The same update in one kernel, without copies of the parameters in between.
                fused=parameters[0].is_cuda,
            ),
            # Raised by the factor that the loss is, so that clipping sees the unscaled norm.
            config=deepspeed_config(config, optimizer.clip * loss_scale),
        )

    def velocity(self, condition: Tensor, role: Role) -> Velocity:
        """The engine's network in a role, as a velocity for one batch's conditioning."""
        return lambda x, sigma: self.engine(x, sigma, condition, role)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Backward of one micro-batch; `last` marks the one after which `step` follows.

        Each engine is told its own boundary, so that two engines accumulate independently.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.loss_scale)

    def step(self, update: int) -> float:
        """One optimizer step, the `update`-th (from 0) of this engine; returns the unscaled gradient norm."""
        warmup = self._settings.warmup
        lr = self._settings.lr * min(1.0, (update + 1) / warmup) if warmup else self._settings.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) / self.loss_scale if norm is not None else float("nan")


class Frozen:
    """A network that is only asked; under ZeRO-3 its weights are sharded like those of the trained ones."""

    def __init__(self, network: RoleNetwork, config: TrainConfig) -> None:
        self.network = network.requires_grad_(False)
        self._called: nn.Module = network
        if config.zero.stage == 3:
            self._called = deepspeed.initialize(model=network, config=deepspeed_config(config, 0.0))[0]

    def velocity(self, condition: Tensor, role: Role) -> Velocity:
        """As `Engine.velocity`."""
        return lambda x, sigma: self._called(x, sigma, condition, role)


class Holder(Protocol):
    """Who holds a network that is asked for velocities."""

    network: RoleNetwork

    def velocity(self, condition: Tensor, role: Role) -> Velocity:
        """The network in a role, as a velocity for one batch's conditioning."""
        ...


@dataclass(frozen=True)
class Players:
    """The engines, and who plays which role with which weights.

    Attributes:
        engines: by name, as the method's `players` say; the generator's is always there.
        generator_role: the role in which the generator's network is the generator.
        base: who holds the frozen teacher; None where the method needs none.
    """

    engines: dict[str, Engine]
    generator_role: Role
    base: Holder | None

    @property
    def generator(self) -> Engine:
        return self.engines[GENERATOR]

    @property
    def fake(self) -> Engine:
        return self.engines[FAKE]

    def engine(self, name: str) -> Engine:
        return self.engines[name]

    def generator_velocity(self, condition: Tensor) -> Velocity:
        return self.generator.velocity(condition, self.generator_role)

    def score(self, condition: Tensor, weight: float) -> Velocity:
        """`theta + weight * zeta`: the fake score at the strong weight, the real one at the weak (MD Eq. 5, 6)."""
        return self.fake.velocity(condition, Role(FAKE, weight))

    def teacher(self, condition: Tensor) -> Velocity:
        """The frozen teacher theta; to be asked without gradient."""
        assert self.base is not None
        return self.base.velocity(condition, BASE)


def build_players(config: TrainConfig, teacher: Checkpoint, prompt: NullPrompt, device: torch.device) -> Players:
    """Load the teacher once or twice, add the branches, and wrap what is trained into engines."""
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    method, model = config.method, config.model
    shared = model.mode == "lora"
    base = load_network(teacher, dtype, device) if shared or FAKE in method.players or method.uses_teacher else None
    if base is not None and shared:
        add_branch(base, GENERATOR, model.generator_branch.rank, model.generator_branch.alpha, config.seed)
    if base is not None and FAKE in method.players:
        add_branch(base, FAKE, model.fake_branch.rank, model.fake_branch.alpha, config.seed + 1)
    if base is not None and shared:
        trained = branch_parameters(base, GENERATOR)
        generator_network, role = RoleNetwork(base, prompt), Role(GENERATOR, 1.0)
    else:
        student = load_network(teacher, dtype, device)
        trained = list(student.parameters())
        generator_network, role = RoleNetwork(student, prompt), BASE
    for network in {id(n): n for n in (base, generator_network.transformer) if n is not None}.values():
        network.train()
        if model.activation_checkpointing:
            checkpoint_activations(network, model.keep_attention)
    engines = {GENERATOR: Engine(generator_network, trained, config, config.generator_optimizer)}
    holder: Holder | None = engines[GENERATOR] if shared else None
    if base is not None and FAKE in method.players:
        assert config.fake_optimizer is not None
        engines[FAKE] = Engine(
            RoleNetwork(base, prompt),
            branch_parameters(base, FAKE),
            config,
            config.fake_optimizer,
            method.fake_loss_scale,
        )
        holder = engines[FAKE]
    elif base is not None and not shared:
        holder = Frozen(RoleNetwork(base, prompt), config)
    return Players(engines, role, holder)


def collect_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's parameters on the CPU of the main process (elsewhere empty); a collective call under ZeRO-3.

    One parameter is gathered at a time, so that a sharded 13B network never stands whole on one GPU.
    """
    state = {}
    for name, parameter in network.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded):
            if is_main():
                state[name] = parameter.detach().cpu().clone()
    return state

"""The two DeepSpeed engines of a distillation: the generator, and the fake branch on the frozen teacher.

Mode `full`: the generator is a copy of the teacher, the fake branch sits on a second, frozen one.
Mode `lora`: generator branch, fake branch and the real score share one frozen base.
"""

from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.hunyuan_video import NullPrompt
from magicdistill_core.flow import Velocity

from .config import OptimizerConfig, TrainConfig
from .distributed import is_main
from .network import load_network
from .roles import BASE, Role, RoleNetwork, add_branch, branch_parameters, checkpoint_activations

GENERATOR, FAKE = "generator", "fake"


def deepspeed_config(config: TrainConfig, optimizer: OptimizerConfig, loss_scale: float) -> dict[str, Any]:
    """DeepSpeed's settings for one engine.

    Clipping is raised by the factor that the loss was, so that it sees the unscaled norm.
    """
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
        "gradient_clipping": optimizer.clip * loss_scale,
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
            ),
            config=deepspeed_config(config, optimizer, loss_scale),
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


@dataclass(frozen=True)
class Players:
    """The engines, and which engine plays which role with which weights."""

    generator: Engine
    fake: Engine
    generator_role: Role

    def engine(self, name: str) -> Engine:
        return self.generator if name == GENERATOR else self.fake

    def generator_velocity(self, condition: Tensor) -> Velocity:
        return self.generator.velocity(condition, self.generator_role)

    def score(self, condition: Tensor, weight: float) -> Velocity:
        """`theta + weight * zeta`: the fake score at the strong weight, the real one at the weak (MD Eq. 5, 6)."""
        return self.fake.velocity(condition, Role(FAKE, weight))


def build_players(config: TrainConfig, teacher: Checkpoint, prompt: NullPrompt, device: torch.device) -> Players:
    """Load the teacher once or twice, add the branches, and wrap what is trained into engines."""
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    branch = config.model.fake_branch
    base = load_network(teacher, dtype, device)
    if config.model.mode == "lora":
        own = config.model.generator_branch
        add_branch(base, GENERATOR, own.rank, own.alpha, config.seed)
        add_branch(base, FAKE, branch.rank, branch.alpha, config.seed + 1)
        trained = branch_parameters(base, GENERATOR)
        generator_network, role = RoleNetwork(base, prompt), Role(GENERATOR, 1.0)
    else:
        add_branch(base, FAKE, branch.rank, branch.alpha, config.seed + 1)
        student = load_network(teacher, dtype, device)
        trained = list(student.parameters())
        generator_network, role = RoleNetwork(student, prompt), BASE
    for network in {id(n): n for n in (base, generator_network.transformer)}.values():
        network.train()
        if config.model.activation_checkpointing:
            checkpoint_activations(network, config.model.keep_attention)
    generator = Engine(generator_network, trained, config, config.generator_optimizer)
    fake = Engine(
        RoleNetwork(base, prompt),
        branch_parameters(base, FAKE),
        config,
        config.fake_optimizer,
        config.method.fake_loss_scale,
    )
    return Players(generator, fake, role)


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

"""DeepSpeed engines: what is trained, each with an optimizer of its own, and networks that are only asked."""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from magicdistill_core.families.base import Condition
from magicdistill_core.flow import Velocity

from ..config.sections import OptimizerConfig
from ..config.training import TrainConfig
from ..distributed import is_main
from ..networks.discriminator import Discriminator, Features
from ..networks.roles import BASE, Role, RoleNetwork


def deepspeed_config(config: TrainConfig, clip: float, stage: int) -> dict[str, Any]:
    """DeepSpeed's settings for one engine whose gradients are clipped to a norm, at a stage of ZeRO."""
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
    """One trained role: its DeepSpeed engine, its optimizer's warm-up, and the loss scale of its updates."""

    def __init__(
        self,
        network: nn.Module,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        optimizer: OptimizerConfig,
        *,
        stage: int,
        loss_scale: float = 1.0,
    ) -> None:
        self.loss_scale = loss_scale
        self._settings = optimizer
        # Lowered when a run goes back after a collapse.
        self.lr_factor = 1.0
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
            config=deepspeed_config(config, optimizer.clip * loss_scale, stage),
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Backward of one micro-batch; `last` marks the one after which `step` follows.

        Each engine is told its own boundary, so that two engines accumulate independently.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.loss_scale)

    def step(self, update: int, progress: float = 0.0) -> float | None:
        """One optimizer step, the `update`-th (from 0) of this engine, with `progress` of the run done (0 to 1).

        Returns:
            The unscaled gradient norm; None where DeepSpeed keeps it to itself: without ZeRO in fp32.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._settings.rate(update, progress) * self.lr_factor
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) / self.loss_scale if norm is not None else None


class NetworkCalls:
    """Who holds a network of several roles and is asked for its velocities."""

    network: RoleNetwork
    # The network, or what DeepSpeed made of it: under ZeRO-3 only that gathers the weights.
    called: nn.Module

    def velocity(
        self, condition: Condition, role: Role, *, unconditional: bool = False, guidance: Tensor | None = None
    ) -> Velocity:
        """The network in a role, as a velocity for one batch's conditioning.

        Args:
            unconditional: with the negative prompt in place of the prompt.
            guidance: `[B]`, for a network with a guidance embedding; None is `model.embedded_guidance`.
        """
        given = {"unconditional": unconditional, "guidance": guidance}
        return lambda x, sigma: self.called(x, sigma, condition, role, **given)

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> Features:
        """What the base's last double block gives (see `discriminator`).

        Not by way of the engine, which takes every backward through what it gave for one of its own.
        """
        features: Features = self.network(x, sigma, condition, BASE, features=True)
        return features


class NetworkEngine(Engine, NetworkCalls):
    """The engine of a generator or of a branch."""

    def __init__(
        self,
        network: RoleNetwork,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        optimizer: OptimizerConfig,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(network, parameters, config, optimizer, stage=config.zero.stage, loss_scale=loss_scale)
        self.network = network
        self.called = self.engine


class DiscriminatorEngine(Engine):
    """The engine of a discriminator; never sharded, for its one block is small and is asked without the engine."""

    def __init__(self, discriminator: Discriminator, config: TrainConfig, optimizer: OptimizerConfig) -> None:
        parameters = list(discriminator.parameters())
        super().__init__(discriminator, parameters, config, optimizer, stage=min(config.zero.stage, 2))


class FrozenNetwork(NetworkCalls):
    """A network that is only asked; under ZeRO-3 its weights are sharded like those of the trained ones."""

    def __init__(self, network: RoleNetwork, config: TrainConfig) -> None:
        self.network = network.requires_grad_(False)
        self.called = network
        if config.zero.stage == 3:
            self.called = deepspeed.initialize(model=network, config=deepspeed_config(config, 0.0, 3))[0]


def collect_state(network: nn.Module, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Copies of a network's parameters on the CPU of the main process (elsewhere none); a collective call under ZeRO-3.

    One parameter is gathered at a time, so that a sharded 13B network never stands whole on one GPU.

    Args:
        wanted: by its name, whether a parameter is; without it all are.
    """
    state = {}
    for name, parameter in network.named_parameters():
        if wanted is not None and not wanted(name):
            continue
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded):
            if is_main():
                state[name] = parameter.detach().to("cpu", copy=True)
    return state

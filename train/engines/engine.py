"""DeepSpeed engines: one with its own optimizer per trained role, and frozen networks that are only called.

A *role* is what a network does in a training: the generator, the fake score (called `fake`) and the discriminator are
trained, the teacher and the real score are not. A *branch* is a LoRA on frozen weights. One branch can serve several
roles, at a weight per role (see `networks.roles`).
"""

import logging
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from magicdistill_core.flow import Velocity

from ..config.sections import OptimizerConfig
from ..config.training import TrainConfig
from ..distributed import is_main
from ..networks.discriminator import Discriminator
from ..networks.hunyuan_transformer import Features
from ..networks.prompts import Conditioning
from ..networks.roles import BASE, Role, RoleNetwork

logger = logging.getLogger(__name__)

# Elements of DeepSpeed's usual bucket of gradients.
_BUCKET = 500_000_000


def has_fp32_gradients(config: TrainConfig, network: nn.Module) -> bool:
    """Return whether the gradients of a bf16 network are added over processes and micro-batches in fp32.

    Each backward pass makes gradients in bf16. In bf16 a sum of many of them loses the small ones. That matters for
    a branch, whose gradients are small and whose fp32 buffers are too, and wherever micro-batches are accumulated. All
    weights of a network, without accumulation, keep bf16: fp32 would need 2 more bytes per weight.

    Args:
        config: the training's configuration.
        network: the network that is trained; one with frozen weights trains a branch.
    """
    if config.model.precision == "fp32":
        return False
    is_branch = any(not parameter.requires_grad for parameter in network.parameters())
    return is_branch or config.data.accumulation > 1


def deepspeed_config(
    config: TrainConfig, clip: float, stage: int, *, fp32_gradients: bool = False, trained: int | None = None
) -> dict[str, Any]:
    """Return the DeepSpeed settings of one engine, as `deepspeed.initialize` takes them.

    Args:
        config: the training's configuration.
        clip: the norm to which gradients are clipped; 0 for no clipping.
        stage: the ZeRO stage, 0 to 3.
        fp32_gradients: whether to add bf16 gradients over processes and micro-batches in fp32. At stage 0 DeepSpeed
            can only add those of the processes in fp32.
        trained: number of trained parameters; None for a frozen network.
    """
    zero: dict[str, Any] = {"stage": stage}
    if trained is not None:
        # DeepSpeed allocates the complete bucket, in fp32 at stage 3. A branch needs less than the usual one.
        zero["reduce_bucket_size"] = min(_BUCKET, trained)
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
        if config.model.mode == "lora":
            # Two engines gather the partitions of one shared base. If one of them prefetched a parameter, the other one
            # would find it in flight.
            zero["stage3_prefetch_bucket_size"] = 0
    types: dict[str, Any] = {}
    if fp32_gradients:
        types = {"communication_data_type": "fp32"}
        if stage > 0:
            types["data_types"] = {"grad_accum_dtype": "fp32"}
    return types | {
        "train_micro_batch_size_per_gpu": config.data.micro_batch,
        "gradient_accumulation_steps": config.data.accumulation,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.precision == "bf16"},
        # We pass our own optimizers (plain AdamW), on any device.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def full_size(parameter: nn.Parameter) -> int:
    """Return the number of elements of a parameter, also if ZeRO-3 has partitioned it already."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class Engine:
    """One trained role: its DeepSpeed engine, its optimizer with warm-up, and its loss scale."""

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
        """Create the optimizer, and pass it with the network to DeepSpeed.

        Args:
            network: the network or discriminator that DeepSpeed wraps.
            parameters: the parameters of the network that the optimizer trains.
            config: the training's configuration.
            optimizer: learning rate schedule, Adam's settings and gradient clipping.
            stage: the ZeRO stage, 0 to 3.
            loss_scale: factor on every loss before its backward pass. Gradient clipping and `step` use unscaled norms.
        """
        self.loss_scale = loss_scale
        self._settings = optimizer
        fp32_gradients = has_fp32_gradients(config, network)
        if fp32_gradients and stage == 0 and config.data.accumulation > 1 and is_main():
            logger.warning(
                "At zero.stage=0 DeepSpeed adds the gradients of data.accumulation=%d micro-batches in bf16, which "
                "loses small ones. Set zero.stage=1 or 2 to add them in fp32",
                config.data.accumulation,
            )
        # Lowered when a run rolls back after a collapse.
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
                # The fused kernel computes the same update without temporary copies of the parameters.
                fused=parameters[0].is_cuda,
            ),
            # Gradients carry the loss scale. Scaling the clip norm too clips at the configured unscaled norm.
            config=deepspeed_config(
                config,
                optimizer.clip * loss_scale,
                stage,
                fp32_gradients=fp32_gradients,
                trained=sum(full_size(parameter) for parameter in parameters),
            ),
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass of one micro-batch.

        The boundary is set explicitly on each engine, because two engines accumulate independently.

        Args:
            loss: a scalar, not yet scaled.
            last: whether this is the last backward before `step`.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.loss_scale)

    def step(self, update: int, progress: float = 0.0) -> float | None:
        """Take one optimizer step with the gradients of the backward passes.

        Args:
            update: how many updates this engine has made before this one.
            progress: the share of the run that is done, 0 to 1.

        Returns:
            The unscaled gradient norm; None without ZeRO in fp32, where DeepSpeed does not expose it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._settings.rate(update, progress) * self.lr_factor
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) / self.loss_scale if norm is not None else None


class NetworkCalls:
    """A network with several roles, and calls of it that return velocities or features.

    Attributes:
        network: the network.
        module: the network or its DeepSpeed wrapper. Under ZeRO-3 only a call of the wrapper gathers the weights.
    """

    network: RoleNetwork
    module: nn.Module

    def velocity(
        self, condition: Conditioning, role: Role, *, unconditional: bool = False, guidance: Tensor | None = None
    ) -> Velocity:
        """Return the velocity function `(x, sigma) -> velocity` of the network in one role for one batch.

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
            role: the branch and its weight.
            unconditional: use the negative prompt instead of the prompt.
            guidance: guidance scales `[B]` for a network with a guidance embedding; None uses
                `model.embedded_guidance`.
        """
        options = {"unconditional": unconditional, "guidance": guidance}
        return lambda x, sigma: self.module(x, sigma, condition, role, **options)

    def features(self, x: Tensor, sigma: Tensor, condition: Conditioning) -> Features:
        """Compute the features after the base's last double block (see `networks.discriminator`).

        This calls the network directly. The engine would count a backward through its own output as one of its own
        backward passes.

        Args:
            x: noisy frames `[B, 16, T, H, W]`.
            sigma: noise levels `[B]`.
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
        """
        features: Features = self.network(x, sigma, condition, BASE, features=True)
        return features


class NetworkEngine(Engine, NetworkCalls):
    """The engine of a full generator or of a low-rank branch."""

    def __init__(
        self,
        network: RoleNetwork,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        optimizer: OptimizerConfig,
        loss_scale: float = 1.0,
    ) -> None:
        """Create the engine of a network.

        Args:
            network: the generator, or the base with the branch.
            parameters: all parameters of the generator, or those of the branch.
            config: the training's configuration.
            optimizer: the settings of the optimizer.
            loss_scale: as for `Engine`.
        """
        super().__init__(network, parameters, config, optimizer, stage=config.zero.stage, loss_scale=loss_scale)
        self.network = network
        self.module = self.engine


class DiscriminatorEngine(Engine):
    """The engine of a discriminator.

    Its weights are never partitioned (at most ZeRO stage 2): its single block is small and is called without the
    engine.
    """

    def __init__(self, discriminator: Discriminator, config: TrainConfig, optimizer: OptimizerConfig) -> None:
        """Create the engine of a discriminator, which trains all its parameters."""
        parameters = list(discriminator.parameters())
        super().__init__(discriminator, parameters, config, optimizer, stage=min(config.zero.stage, 2))


class FrozenNetwork(NetworkCalls):
    """A frozen network; under ZeRO-3 its weights are partitioned like those of the trained networks."""

    def __init__(self, network: RoleNetwork, config: TrainConfig) -> None:
        """Freeze a network.

        Args:
            network: the network; its parameters no longer require gradients.
            config: the training's configuration; at ZeRO stage 3 DeepSpeed partitions the network.
        """
        self.network = network.requires_grad_(False)
        self.module = network
        if config.zero.stage == 3:
            self.module = deepspeed.initialize(model=network, config=deepspeed_config(config, 0.0, 3))[0]


def collect_state(network: nn.Module, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Copy a network's parameters to the CPU of the main process; a collective call under ZeRO-3.

    It gathers one parameter at a time, so no GPU ever holds all weights of a partitioned 13B network.

    Args:
        network: the network to copy from.
        wanted: function `(name) -> bool`: returns whether to copy a parameter; None copies all.

    Returns:
        The parameters by name on the main process; an empty dictionary on the other processes.
    """
    state = {}
    for name, parameter in network.named_parameters():
        if wanted is not None and not wanted(name):
            continue
        partitioned = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(partitioned):
            if is_main():
                state[name] = parameter.detach().to("cpu", copy=True)
    return state

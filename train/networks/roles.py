"""One network in several roles: the frozen base plus one of its low-rank branches at a weight (MD Eq. 5 and 6).

The role is an argument of each call. During the call it is set on peft's layers. Activation checkpointing runs a block
again during backward, so each checkpointed block remembers the role of its forward and recomputes in that role.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from magicdistill_core.branch import LowRank, branch_scale
from magicdistill_core.families import architecture_knowing
from magicdistill_core.families.base import Condition, NullPrompt
from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.layouts.lora import to_file_layout

from .discriminator import double_block_features
from .families import kind_of
from .network import call_inputs, prompt_on

# PyTorch's fused attention kernels. The unfused one, which computes the full attention matrix, is not among them.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


@dataclass(frozen=True)
class Role:
    """A branch and its weight. Without a branch the role is the base."""

    adapter: str | None = None
    weight: float = 0.0


BASE = Role()


class RoleSwitch:
    """Reads and sets which branch is active, and at which scale, in the peft layers of a transformer or block."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]

    def state(self) -> list[tuple[list[str], dict[str, float]]]:
        """Active branches and scales of each layer."""
        return [(list(layer.active_adapters), dict(layer.scaling)) for layer in self.layers]

    def state_of(self, role: Role) -> list[tuple[list[str], dict[str, float]]]:
        """The state of the layers in `role`. At weight 0 no branch is active, so none is computed."""
        if role.adapter is None or role.weight == 0:
            return [([], {}) for _ in self.layers]
        name = role.adapter
        return [
            ([name], {name: branch_scale(role.weight, layer.lora_alpha[name], layer.r[name])}) for layer in self.layers
        ]

    @contextmanager
    def held(self, state: list[tuple[list[str], dict[str, float]]]) -> Iterator[None]:
        """Set the layers to a state within the context, and restore their previous state afterwards."""
        before = self.state()
        self._set(state)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: list[tuple[list[str], dict[str, float]]]) -> None:
        for layer, (active, scaling) in zip(self.layers, state, strict=True):
            # Not peft's `set_adapter`, because it changes requires_grad, which breaks ZeRO's backward.
            layer._active_adapter = active
            layer.scaling.update(scaling)


class RoleNetwork(nn.Module):
    """A transformer that is called in a role.

    Several `RoleNetwork`s, each for its own engine, may share one transformer.
    """

    def __init__(
        self,
        transformer: nn.Module,
        prompt: NullPrompt,
        negative: NullPrompt | None = None,
        guidance: float = EMBEDDED_GUIDANCE,
    ) -> None:
        """
        Args:
            prompt: text conditioning of the calls.
            negative: text conditioning of `unconditional` calls.
            guidance: guidance scale for a network with a guidance embedding, unless a call sets another.
        """
        super().__init__()
        self.kind = kind_of(transformer)
        self.guidance = guidance
        self.transformer = transformer
        device = next(transformer.parameters()).device
        # Copied to the network's device once here, instead of at every call.
        self.prompt = prompt_on(prompt, device)
        self.negative = None if negative is None else prompt_on(negative, device)
        self.switch = RoleSwitch(transformer)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
        role: Role,
        *,
        unconditional: bool = False,
        guidance: Tensor | None = None,
        features: bool = False,
    ) -> Any:
        """The velocity `[B, 16, T, H, W]` of the role's weights, in float32.

        Args:
            x: noisy frames `[B, 16, T, H, W]`, without the frames that the start image sets; cast to the network's
                dtype here.
            sigma: noise levels `[B]`.
            condition: the family's conditioning on the start images.
            role: the branch and its weight.
            unconditional: use the negative prompt instead of the prompt.
            guidance: guidance scales `[B]` for a network with a guidance embedding; None is `self.guidance`.
            features: return the `Features` after the last double block instead, and skip the later blocks.
        """
        dtype = next(self.transformer.parameters()).dtype
        prompt = self.negative if unconditional else self.prompt
        assert prompt is not None
        with self.switch.held(self.switch.state_of(role)):
            scale = self.guidance if guidance is None else guidance
            inputs = call_inputs(self.transformer, x.to(dtype), sigma, condition, prompt, scale)
            if features:
                return double_block_features(self.transformer, inputs)
            return self.kind.output(self.transformer(**inputs, return_dict=False)[0]).float()


def checkpoint_activations(transformer: Any, keep_attention: bool = False) -> None:
    """Recompute blocks during backward, each in the role of its forward. Call this after `add_branch`.

    Args:
        keep_attention: store the outputs of attention and recompute only the rest. Attention is most of the computation
            of a long video. This stores one more hidden state per block.
    """
    # One switch per block, created once: a 13B network has hundreds of layers.
    switches = {block: RoleSwitch(block) for block in kind_of(transformer).blocks(transformer)}

    def run(block: nn.Module, *args: Any) -> Any:
        switch = switches[block]
        state = switch.state()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            if not keep_attention:
                return nullcontext(), switch.held(state)
            keep, reuse = create_selective_checkpoint_contexts(_keep_attention)
            return keep, _both(switch.held(state), reuse)

        # The blocks draw no random numbers, so no random state has to be preserved.
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)

    transformer.enable_gradient_checkpointing(run)


def _keep_attention(context: object, operator: object, *args: object, **settings: object) -> CheckpointPolicy:
    """Whether selective checkpointing stores or recomputes an operator's outputs."""
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


def add_branch(transformer: nn.Module, name: str, rank: int, alpha: float, seed: int) -> None:
    """Add a low-rank branch, zero at first, to all linear layers of the blocks; only branches stay trainable."""
    targets = kind_of(transformer).lora_targets
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # If the base is on `meta`, its branches must be too. Peft does not do this by itself.
        meta = next(transformer.parameters()).is_meta
        with warnings.catch_warnings():
            # A second branch is intended.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            inject_adapter_in_model(config, transformer, adapter_name=name, low_cpu_mem_usage=meta)
    for key, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in key)


def branch_parameters(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """The trainable parameters of one branch."""
    return [p for key, p in transformer.named_parameters() if is_in_branch(key, name)]


def is_in_branch(key: str, name: str) -> bool:
    """Whether the parameter `key` belongs to the branch `name`."""
    return f".lora_A.{name}." in key or f".lora_B.{name}." in key


def branch_modules(state: Mapping[str, Tensor], name: str, alpha: float, hidden: int) -> dict[str, LowRank]:
    """A branch as low-rank pairs per module of the file layout, with q, k and v fused.

    Args:
        state: state dict of the network with the branch.
        name: of the branch.
        alpha: of the branch.
        hidden: hidden size of the network.
    """
    split = {}
    for key, down in state.items():
        module, found, _ = key.partition(f".lora_A.{name}.weight")
        if found:
            split[module] = LowRank(down, state[f"{module}.lora_B.{name}.weight"], alpha)
    return to_file_layout(architecture_knowing(split).layout, split, hidden)

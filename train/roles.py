"""One network, several roles: the frozen base with one of its low-rank branches at a weight (MD Eq. 5 and 6).

The role is an argument of the call. Within the call it is set on peft's layers; activation checkpointing runs a block
again during backward, so every checkpointed block remembers the role of its forward and recomputes in it.
"""

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
from magicdistill_core.families.hunyuan_video import NullPrompt
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout

from .network import network_inputs, prompt_on

# All linears of the blocks; embedders, modulations and the output layer stay as they are.
LORA_TARGETS = (
    r".*transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


# The kernels of PyTorch's attention, without the one that multiplies matrices out.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


@dataclass(frozen=True)
class Role:
    """A branch and its weight; no branch is the base itself."""

    adapter: str | None = None
    weight: float = 0.0


BASE = Role()


class RoleSwitch:
    """The state of the peft layers of a transformer, or of one of its blocks: which branch is active at which scale."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]

    def state(self) -> list[tuple[list[str], dict[str, float]]]:
        """Active branches and scales of every layer."""
        return [(list(layer.active_adapters), dict(layer.scaling)) for layer in self.layers]

    def state_of(self, role: Role) -> list[tuple[list[str], dict[str, float]]]:
        """The state in which the layers play `role`."""
        if role.adapter is None:
            return [([], {}) for _ in self.layers]
        name = role.adapter
        return [
            ([name], {name: branch_scale(role.weight, layer.lora_alpha[name], layer.r[name])}) for layer in self.layers
        ]

    @contextmanager
    def held(self, state: list[tuple[list[str], dict[str, float]]]) -> Iterator[None]:
        """Give the layers a state, and afterwards the one they had."""
        before = self.state()
        self._set(state)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: list[tuple[list[str], dict[str, float]]]) -> None:
        for layer, (active, scaling) in zip(self.layers, state, strict=True):
            # Not peft's `set_adapter`: that flips requires_grad, which breaks ZeRO's backward.
            layer._active_adapter = active
            layer.scaling.update(scaling)


class RoleNetwork(nn.Module):
    """A transformer whose every call says in which role it is made.

    Several `RoleNetwork`s may share one transformer, each for another engine.
    """

    def __init__(self, transformer: nn.Module, prompt: NullPrompt) -> None:
        super().__init__()
        self.transformer = transformer
        # On the network's device from the start, and not copied there at every call.
        self.prompt = prompt_on(prompt, next(transformer.parameters()).device)
        self.switch = RoleSwitch(transformer)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, role: Role) -> Tensor:
        """The velocity `[B, 16, T, H, W]` of the role's weights, in float32.

        Args:
            x: noisy latent `[B, 16, T, H, W]`; cast to the network's dtype here.
            sigma: `[B]`.
            condition: concatenated channels `[B, 17, T, H, W]`.
        """
        dtype = next(self.transformer.parameters()).dtype
        with self.switch.held(self.switch.state_of(role)):
            inputs = network_inputs(x.to(dtype), sigma, condition, self.prompt)
            return self.transformer(**inputs, return_dict=False)[0].float()


def checkpoint_activations(transformer: Any, keep_attention: bool = False) -> None:
    """Recompute blocks during backward, each in the role in which it ran forward; to be called after `add_branch`.

    Args:
        keep_attention: keep the outputs of attention, which makes up most of a long video's computation, and recompute
            only the rest: one more hidden state a block is held.
    """
    # One switch a block: it is held once a block, and a 13B network has hundreds of layers.
    switches = {
        block: RoleSwitch(block) for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    }

    def run(block: nn.Module, *args: Any) -> Any:
        switch = switches[block]
        state = switch.state()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            if not keep_attention:
                return nullcontext(), switch.held(state)
            keep, reuse = create_selective_checkpoint_contexts(_keep_attention)
            return keep, _both(switch.held(state), reuse)

        # The blocks draw no random numbers, so that there is no state of a generator to keep.
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)

    transformer.enable_gradient_checkpointing(run)


def _keep_attention(context: object, operator: object, *args: object, **settings: object) -> CheckpointPolicy:
    """What selective checkpointing does with an operator's outputs."""
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


def add_branch(transformer: nn.Module, name: str, rank: int, alpha: float, seed: int) -> None:
    """Add a low-rank branch (zero at first) to all linears of the blocks; from then on only branches are trainable."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer, adapter_name=name)
    for key, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in key)


def branch_parameters(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of one branch."""
    halves = (f".lora_A.{name}.", f".lora_B.{name}.")
    return [p for key, p in transformer.named_parameters() if any(half in key for half in halves)]


def branch_modules(state: Mapping[str, Tensor], name: str, alpha: float, hidden: int) -> dict[str, LowRank]:
    """A branch by file-layout module (q, k and v fused), from the state dict of the network that holds it."""
    split = {}
    for key, down in state.items():
        module, found, _ = key.partition(f".lora_A.{name}.weight")
        if found:
            split[module] = LowRank(down, state[f"{module}.lora_B.{name}.weight"], alpha)
    return to_file_layout(HUNYUAN_VIDEO, split, hidden)

"""One network in several roles: the frozen base plus one of its low-rank branches at a weight.

A *branch* is a LoRA: a pair of low-rank matrices for each linear layer of the blocks. The layer computes with `theta +
a * zeta`, where theta are the frozen base weights, zeta is the branch and a is its weight (MD Eq. 5 and 6; MD:
MagicDistillation, arXiv 2503.13319). A *role* is what the network computes in one call: the teacher, the real score,
the fake score or the generator.

The role is an argument of each call. During the call it is set on peft's layers. Activation checkpointing runs a block
again during backward, so each checkpointed block remembers the role of its forward and recomputes in that role.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from magicdistill_core.branch import LowRank, branch_scale
from magicdistill_core.families import architecture_knowing
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.layouts.lora import to_file_layout

from .families import kind_of
from .network import call_inputs
from .prompts import Captioned, Conditioning, Prompts, prompt_on

# PyTorch's fused attention kernels. The unfused one, which computes the full attention matrix, is not among them.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


@dataclass(frozen=True)
class Role:
    """The low-rank branch that a call adds to the base weights, and the branch's weight.

    For example, `Role("fake", 1.0)` is the fake score, `Role("fake", 0.25)` is the real score, and `Role()` is the
    teacher: the base alone.

    Attributes:
        adapter: name of the branch, as given to `add_branch`; None for the base alone.
        weight: factor of the branch; 0 is the base alone.
    """

    adapter: str | None = None
    weight: float = 0.0


BASE = Role()

# For each layer: the names of the active branches, and the scale of each branch by name.
State = list[tuple[list[str], dict[str, Tensor]]]


@lru_cache(maxsize=64)
def _scale(weight: float, alpha: float, rank: int) -> Tensor:
    # On the CPU: an operation on a GPU takes one number from there as it takes a number of Python.
    return torch.tensor(branch_scale(weight, alpha, rank))


class RoleSwitch:
    """The active branch and its scale in the peft layers of a transformer or block, to read and to change.

    A *state* is a list with one pair per layer: the names of the active branches, and the scale of each branch by name.
    A scale is a tensor with one number: compiled blocks then need no new graph for another scale.
    """

    def __init__(self, module: nn.Module) -> None:
        """Find the peft layers of a module.

        Args:
            module: a transformer or one of its blocks, after `add_branch`.
        """
        self.layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]

    def state(self) -> State:
        """Return the active branches and the scales of each layer now."""
        return [(list(layer.active_adapters), dict(layer.scaling)) for layer in self.layers]

    def state_of(self, role: Role) -> State:
        """Return the state of the layers in `role`. At weight 0 no branch is active, so none is computed."""
        if role.adapter is None or role.weight == 0:
            return [([], {}) for _ in self.layers]
        name = role.adapter
        return [([name], {name: _scale(role.weight, layer.lora_alpha[name], layer.r[name])}) for layer in self.layers]

    @contextmanager
    def held(self, state: State) -> Iterator[None]:
        """Set the layers to a state within the context, and restore their previous state afterwards.

        Args:
            state: a result of `state` or `state_of`.
        """
        before = self.state()
        self._set(state)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: State) -> None:
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
        """Wrap a transformer, and copy the prompts to its device.

        Args:
            transformer: diffusers' transformer, with or without branches.
            prompt: text conditioning of calls without prompts per sample.
            negative: text conditioning of `unconditional` calls; None if there are no such calls.
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
        condition: Conditioning,
        role: Role,
        *,
        unconditional: bool = False,
        guidance: Tensor | None = None,
        features: bool = False,
    ) -> Any:
        """Compute the velocity `[B, 16, T, H, W]` of the role's weights, in float32.

        Args:
            x: noisy frames `[B, 16, T, H, W]`, without the frames that the start image sets; cast to the network's
                dtype here.
            sigma: noise levels `[B]`.
            condition: the family's conditioning on the start images; `Captioned` also has the prompts of the samples.
            role: the branch and its weight.
            unconditional: use the negative prompt instead of the prompt.
            guidance: guidance scales `[B]` for a network with a guidance embedding; None is `self.guidance`.
            features: return the `Features` after the last double block instead, and skip the later blocks.
        """
        dtype = next(self.transformer.parameters()).dtype
        prompt: Prompts | None = self.negative if unconditional else self.prompt
        if isinstance(condition, Captioned):
            prompt = (condition.negatives or prompt) if unconditional else condition.prompts
            condition = condition.condition
        assert prompt is not None
        with self.switch.held(self.switch.state_of(role)):
            scale = self.guidance if guidance is None else guidance
            inputs = call_inputs(self.transformer, x.to(dtype), sigma, condition, prompt, scale)
            if features:
                transformer: Any = self.transformer
                return transformer.features(**inputs)
            return self.kind.output(self.transformer(**inputs, return_dict=False)[0]).float()


def checkpoint_activations(transformer: Any, keep_attention: bool = False) -> None:
    """Recompute blocks during backward, each in the role of its forward. Call this after `add_branch`.

    Args:
        transformer: diffusers' transformer; it is changed.
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
    """Decide whether selective checkpointing stores or recomputes an operator's outputs."""
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


def add_branch(transformer: nn.Module, name: str, rank: int, alpha: float, seed: int) -> None:
    """Add a low-rank branch to all linear layers of the blocks.

    The branch returns zero until it is trained. All parameters except those of branches are frozen.

    Args:
        transformer: diffusers' transformer; it is changed.
        name: name of the branch, for `Role.adapter`.
        rank: rank of the two matrices.
        alpha: scale of the branch: its output is multiplied by `alpha / rank`.
        seed: seed of the branch's first weights.
    """
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
    """Return the trainable parameters of the branch `name` of a transformer."""
    return [p for key, p in transformer.named_parameters() if is_in_branch(key, name)]


def is_in_branch(key: str, name: str) -> bool:
    """Return whether the parameter with the name `key` belongs to the branch `name`."""
    return f".lora_A.{name}." in key or f".lora_B.{name}." in key


def branch_modules(state: Mapping[str, Tensor], name: str, alpha: float, hidden: int) -> dict[str, LowRank]:
    """Return a branch in the file layout: low-rank pairs by module name, with q, k and v fused.

    Args:
        state: state dict of the network with the branch, in diffusers' layout.
        name: name of the branch.
        alpha: scale of the branch, as given to `add_branch`.
        hidden: hidden size of the network.
    """
    split = {}
    for key, down in state.items():
        module, found, _ = key.partition(f".lora_A.{name}.weight")
        if found:
            split[module] = LowRank(down, state[f"{module}.lora_B.{name}.weight"], alpha)
    return to_file_layout(architecture_knowing(split).layout, split, hidden)

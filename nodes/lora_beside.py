"""A LoRA computed beside the weights, for those that ComfyUI's weight hooks cannot change: quantised ones.

`y = W x + strength * alpha / rank * up (down x)`, the strength taken from the hook's keyframes at every call.
"""

from collections.abc import Callable
from functools import partial

import comfy.hooks
import torch
from comfy.model_management import cast_to_device
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ..magicdistill_core.branch import LowRank
from .low_rank import NETWORK, FittedLora, held_weights

_WEIGHT = ".weight"


def weights_are_fixed(model: ModelPatcher) -> bool:
    """Whether a MODEL holds weights that hooks cannot patch: in ComfyUI's quantised formats, or of another pack (GGUF).

    Both are tensors of a class of their own.
    """
    plain = (Tensor, torch.nn.Parameter)
    return any(type(weight) not in plain for weight in held_weights(model).values())


def beside_hook(
    model: ModelPatcher, lora: FittedLora, frames: comfy.hooks.HookKeyframeGroup
) -> tuple[comfy.hooks.TransformerOptionsHook, int]:
    """A hook that adds a LoRA to the outputs of linear layers, and how many of its changes it has to leave out."""
    branches = {}
    for key, patch in lora.patches.items():
        name = key.removeprefix(NETWORK).removesuffix(_WEIGHT)
        # ComfyUI's quantised linear layers are none of PyTorch's, so that the others are told apart.
        layer = model.model.diffusion_model.get_submodule(name) if isinstance(patch, LoRAAdapter) else None
        if layer is not None and not isinstance(layer, torch.nn.Conv3d):
            branches[name] = _branch(patch)

    def wrapper(executor: WrapperExecutor, *args: object, **kwargs: object) -> Tensor:
        strength = frames.strength
        handles = [
            executor.class_obj.get_submodule(name).register_forward_hook(partial(_add, branch, strength))
            for name, branch in branches.items()
            if strength
        ]
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    wrappers: dict[str, dict[str, list[Callable]]] = {WrappersMP.DIFFUSION_MODEL: {"magicdistill_lora": [wrapper]}}
    hook = comfy.hooks.TransformerOptionsHook({"wrappers": wrappers}, comfy.hooks.EnumHookScope.HookedOnly)
    return hook, len(lora.patches) - len(branches) + len(lora.parameters)


def _branch(adapter: LoRAAdapter) -> LowRank:
    up, down, alpha = adapter.weights[:3]
    return LowRank(down, up, alpha)


def _add(branch: LowRank, strength: float, module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = args[0]
    down, up = (cast_to_device(half, x.device, output.dtype) for half in (branch.down, branch.up))
    hidden = torch.nn.functional.linear(x.to(output.dtype), down)
    # In place: at full size a layer's output has gigabytes, of which ComfyUI expects one and not three.
    rows = output.view(-1, output.shape[-1])
    rows.addmm_(hidden.view(-1, hidden.shape[-1]), up.T, alpha=strength * branch.factor)
    return output

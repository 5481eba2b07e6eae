"""An unmerged LoRA, for weights that ComfyUI's weight hooks cannot change (quantised ones).

Instead of changing the weights, the LoRA is added to the output of each linear layer:
`y = W x + strength * alpha / rank * up (down x)`. The strength is read from the hook's keyframes at every call.
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
from .low_rank import NETWORK, FittedLora, network_weights

_WEIGHT = ".weight"


def weights_are_fixed(model: ModelPatcher) -> bool:
    """Return whether a MODEL has weights that ComfyUI's weight hooks cannot change.

    These are weights in ComfyUI's quantised formats and weights of other packs (GGUF). Both are subclasses of Tensor.

    Args:
        model: the MODEL.
    """
    plain = (Tensor, torch.nn.Parameter)
    return any(type(weight) not in plain for weight in network_weights(model).values())


def unmerged_hook(
    model: ModelPatcher, lora: FittedLora, frames: comfy.hooks.HookKeyframeGroup
) -> tuple[comfy.hooks.TransformerOptionsHook, int]:
    """Return a ComfyUI hook that adds a LoRA to the outputs of the linear layers, and the number of changes left out.

    A change is left out if it is not a low-rank pair for a linear layer: full weight differences, convolutions and bare
    parameters. Use this hook only if `weights_are_fixed`. ComfyUI's weight hook leaves out only bare parameters, and
    adds no computation to the layers.

    Args:
        model: the MODEL that will be sampled; it is not changed.
        lora: the LoRA, matched with this MODEL.
        frames: the keyframes, which hold the strength of the current step.

    Returns:
        A hook that wraps the network's calls, for a CONDITIONING, and the number of changes of the LoRA that it does
        not apply.
    """
    branches = {}
    for key, patch in lora.patches.items():
        name = key.removeprefix(NETWORK).removesuffix(_WEIGHT)
        # ComfyUI's quantised linear layers do not derive from torch.nn.Linear, so exclude convolutions instead.
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
    # In place: at full size a layer's output takes gigabytes, and ComfyUI plans memory for one copy, not three.
    rows = output.view(-1, output.shape[-1])
    rows.addmm_(hidden.view(-1, hidden.shape[-1]), up.T, alpha=strength * branch.factor)
    return output

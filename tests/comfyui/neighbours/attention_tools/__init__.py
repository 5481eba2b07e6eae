"""A stand-in for KJNodes and packs for SageAttention: they replace ComfyUI's attention and change settings of PyTorch.

Other packs measure runs: they wrap `PromptExecutor.execute` and `PromptServer.send_sync`.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import comfy.ldm.flux.math
import comfy.ldm.hunyuan_video.model
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.model_management
import execution
import torch
from aiohttp import web
from comfy.model_patcher import ModelPatcher
from server import PromptServer

WEB_DIRECTORY = "./web"
ROUTE = "/neighbours/attention_tools"
_CALLS: Counter[str] = Counter()
_ATTENTION = (
    comfy.ldm.modules.attention,
    comfy.ldm.flux.math,
    comfy.ldm.hunyuan_video.model,
    comfy.ldm.wan.model,
)


def _counted(name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        _CALLS[name] += 1
        return function(*args, **kwargs)

    return call


_replaced: dict[tuple[Any, str], Callable] = {
    (module, "optimized_attention"): _counted("attention", module.optimized_attention) for module in _ATTENTION
}
_replaced |= {
    (owner, name): _counted(name, getattr(owner, name))
    for owner, name in (
        (execution.PromptExecutor, "execute"),
        (PromptServer, "send_sync"),
        (comfy.model_management, "load_models_gpu"),
        (ModelPatcher, "patch_model"),
    )
}
for (_owner, _name), _function in _replaced.items():
    setattr(_owner, _name, _function)
torch.backends.cuda.matmul.allow_fp16_accumulation = True
torch.set_float32_matmul_precision("high")


class PatchAttention:
    """A node that lets one MODEL compute its attention with a function of this pack."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "KJNodes/experimental"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        clone = model.clone()
        override = _counted("override", lambda function, *args, **kwargs: function(*args, **kwargs))
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return (clone,)


_NAMES = ["PathchSageAttentionKJ", *(f"KJTool{number}" for number in range(120))]
NODE_CLASS_MAPPINGS = {name: type(name, (PatchAttention,), {}) for name in _NAMES}
NODE_DISPLAY_NAME_MAPPINGS = {"PathchSageAttentionKJ": "Patch Sage Attention KJ"}


@PromptServer.instance.routes.get(ROUTE)
async def state(request: web.Request) -> web.Response:
    """Tell whether what this pack changed is still in place, and how often it was used."""
    kept = {
        f"{owner.__name__}.{name}": getattr(owner, name) is function for (owner, name), function in _replaced.items()
    }
    kept["fp16 accumulation"] = torch.backends.cuda.matmul.allow_fp16_accumulation
    kept["matmul precision"] = torch.get_float32_matmul_precision() == "high"
    return web.json_response({"kept": kept, "calls": _CALLS})

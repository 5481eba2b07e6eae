"""A stand-in for the wrappers of HunyuanVideo and Wan: own folders, unloading, settings that a run leaves behind."""

import comfy.model_management
import folder_paths
import torch
from aiohttp import web
from server import PromptServer

ROUTE = "/neighbours/video_wrapper"
_FOLDER = "hyvid_embeds"
_CALLS = {"runs": 0}
_left: dict[str, object] = {}
folder_paths.add_model_folder_path(_FOLDER, folder_paths.get_output_directory())


class RunWrapper:
    """A node that unloads all models and changes PyTorch's global settings; its LATENT passes through unchanged."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "HunyuanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's name
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples: dict) -> tuple[dict]:
        _CALLS["runs"] += 1
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        comfy.model_management.cleanup_models_gc()
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.bfloat16)
        torch.manual_seed(7)
        _left["default dtype"] = torch.bfloat16
        return (samples,)


_NAMES = ["HyVideoSampler", "WanVideoSampler", "HyVideoModelLoader", "WanVideoModelLoader"]
NODE_CLASS_MAPPINGS = {name: type(name, (RunWrapper,), {}) for name in _NAMES}
NODE_DISPLAY_NAME_MAPPINGS = {name: name.replace("Video", "Video ") for name in _NAMES}


@PromptServer.instance.routes.get(ROUTE)
async def state(request: web.Request) -> web.Response:
    """Tell whether what this pack changed is still in place, and how often it was used."""
    kept = {"folder": folder_paths.get_output_directory() in folder_paths.get_folder_paths(_FOLDER)}
    kept["default dtype"] = torch.get_default_dtype() == _left.get("default dtype", torch.float32)
    return web.json_response({"kept": kept, "calls": _CALLS})


@PromptServer.instance.routes.get("/neighbours/routes")
async def routes(request: web.Request) -> web.Response:
    """List the addresses that the server answers."""
    resources = PromptServer.instance.app.router.resources()
    return web.json_response(sorted({resource.canonical for resource in resources}))

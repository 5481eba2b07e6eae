"""A stand-in for ComfyUI-GGUF: kinds of folders of its own, and layers of its own for a MODEL.

Its folders share the list of paths with ComfyUI's folder of diffusion models.
"""

import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
from aiohttp import web
from comfy.model_patcher import ModelPatcher
from server import PromptServer

ROUTE = "/neighbours/packed_loader"
_CALLS = {"layers": 0}
_PATHS = folder_paths.folder_names_and_paths["diffusion_models"][0]
_FOLDERS = {"unet_gguf": (_PATHS, {".gguf"}), "clip_gguf": (folder_paths.get_folder_paths("text_encoders"), {".gguf"})}
folder_paths.folder_names_and_paths |= _FOLDERS


class Operations(comfy.ops.manual_cast):
    """ComfyUI's layers with a linear layer of this pack."""

    class Linear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, *args: object, **kwargs: object) -> object:
            _CALLS["layers"] += 1
            return super().forward_comfy_cast_weights(*args, **kwargs)


class LoadPacked:
    """A node that loads a MODEL with this pack's layers."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "bootleg"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's name
        return {"required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, unet_name: str) -> tuple[ModelPatcher]:
        state = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", unet_name))
        return (comfy.sd.load_diffusion_model_state_dict(state, model_options={"custom_operations": Operations}),)


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": LoadPacked}
NODE_DISPLAY_NAME_MAPPINGS = {"UnetLoaderGGUF": "Unet Loader (GGUF)"}


@PromptServer.instance.routes.get(ROUTE)
async def state(request: web.Request) -> web.Response:
    """Tell whether what this pack changed is still in place, and how often it was used."""
    kept = {name: folder_paths.folder_names_and_paths[name] is value for name, value in _FOLDERS.items()}
    return web.json_response({"kept": kept, "calls": _CALLS})

"""A stand-in for VideoHelperSuite: many nodes, a page script, a route, and previews of its own.

VideoHelperSuite replaces `latent_preview.get_previewer`. If a workflow asks for it, its previewer sends each picture
itself: it returns tensors where ComfyUI's previewers return pictures, and nothing where they return a preview.
"""

import functools

import latent_preview
import torch
from aiohttp import web
from server import PromptServer

WEB_DIRECTORY = "./web"
ROUTE = "/neighbours/video_tools"
_SETTING = "VHS_latentpreview"
_CALLS = {"previewers": 0}


class OwnPreviewer(latent_preview.LatentPreviewer):
    """Previews of all frames, with the colours of the previewer that it replaces."""

    def __init__(self, previewer: latent_preview.Latent2RGBPreviewer) -> None:
        self.colours = previewer.latent_rgb_factors

    def decode_latent_to_preview(self, x0: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x0.movedim(1, -1), self.colours.to(x0))

    def decode_latent_to_preview_image(self, preview_format: str, x0: torch.Tensor) -> None:
        frames = x0.movedim(2, 1).flatten(0, 1)
        PromptServer.instance.send_sync(_SETTING, {"length": len(self.decode_latent_to_preview(frames))})


_original = latent_preview.get_previewer


@functools.wraps(_original)
def get_previewer(*args: object, **kwargs: object) -> object:
    """Return an own previewer if the running workflow asks for it."""
    previewer = _original(*args, **kwargs)
    running = list(PromptServer.instance.prompt_queue.currently_running.values())
    workflow = running[0][3].get("extra_pnginfo", {}).get("workflow", {}) if running else {}
    if not workflow.get("extra", {}).get(_SETTING) or not hasattr(previewer, "latent_rgb_factors"):
        return previewer
    _CALLS["previewers"] += 1
    return OwnPreviewer(previewer)


latent_preview.get_previewer = get_previewer


class PassImages:
    """A node that returns its images."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "Video Helper Suite"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's name
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (images,)


_NAMES = ["VHS_VideoCombine", "VHS_LoadVideo", "VHS_LoadImages", *(f"VHS_Tool{number}" for number in range(40))]
NODE_CLASS_MAPPINGS = {name: type(name, (PassImages,), {}) for name in _NAMES}
NODE_DISPLAY_NAME_MAPPINGS = {"VHS_VideoCombine": "Video Combine", "VHS_LoadVideo": "Load Video (Upload)"}


@PromptServer.instance.routes.get(ROUTE)
async def state(request: web.Request) -> web.Response:
    """Tell whether what this pack changed is still in place, and how often it was used."""
    return web.json_response({"kept": {"previewer": latent_preview.get_previewer is get_previewer}, "calls": _CALLS})

"""Pocket portrait: draw a start image from a seed, so the example workflow needs no image file."""

import torch
from comfy_api.latest import io

from ..magicdistill_core.geometry import SIDE_MULTIPLE
from ..magicdistill_core.pocket.files import SIZE


class PocketPortrait(io.ComfyNode):
    """Node `MagicDistillPocketPortrait`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillPocketPortrait",
            display_name="Pocket portrait",
            category="MagicDistillation/image",
            description="Draws a simple portrait like those that the pocket model was trained on. Use it to try a "
            "workflow without an image file. For a model trained on photographs, connect Load Image instead.",
            search_aliases=["magicdistill", "test image", "procedural face", "start image"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=7,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Whole number from 0 to 2^64 - 1 that determines the person, the light and the background. "
                    "The same seed draws the same picture on every machine. Default: 7.",
                ),
                io.Int.Input(
                    "size",
                    default=SIZE,
                    min=32,
                    max=1024,
                    step=SIDE_MULTIPLE,
                    tooltip="Width and height of the picture in pixels, from 32 to 1024. The pocket model was trained "
                    "at 96, the default. Use another size only if the video has another size too.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The drawn portrait, one image.")],
        )

    @classmethod
    def execute(cls, seed: int, size: int) -> io.NodeOutput:
        # Imported here: at the top, the renderer would be a fifth of the time that the pack adds to ComfyUI's start.
        from ..magicdistill_core.pocket.render import portrait_clip

        return io.NodeOutput(portrait_clip(seed, 1, size).to(torch.float32) / 255)

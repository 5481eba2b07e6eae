"""Pocket portrait: a seeded, drawn start image, so that the example workflow needs no file."""

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
            description="Draws a portrait of the little world that the pocket model was trained on. Needs no file: "
            "use it to try a workflow, then connect Load Image for a model that knows photographs.",
            search_aliases=["magicdistill", "test image", "procedural face", "start image"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=7,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Whole number, 0 to 2^64 - 1: which person, light and background. The same seed gives the "
                    "same picture everywhere; change it for another person.",
                ),
                io.Int.Input(
                    "size",
                    default=SIZE,
                    min=32,
                    max=1024,
                    step=SIDE_MULTIPLE,
                    tooltip="Width and height in pixels, 32 to 1024. The pocket model was trained at 96; change it "
                    "with the size of the video.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The portrait, one image.")],
        )

    @classmethod
    def execute(cls, seed: int, size: int) -> io.NodeOutput:
        # Here, because the renderer would be a fifth of what the pack adds to ComfyUI's start.
        from ..magicdistill_core.pocket.render import portrait_clip

        return io.NodeOutput(portrait_clip(seed, 1, size).to(torch.float32) / 255)

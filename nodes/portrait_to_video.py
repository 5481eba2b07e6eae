"""Portrait to video: a start image as the conditioning of image-to-video, with the null prompt of the loaded file."""

import comfy.model_management
import node_helpers
import torch
from comfy.model_base import HunyuanVideo, HunyuanVideoI2V
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError, VideoError
from ..magicdistill_core.families.hunyuan_video import (
    EMBEDDED_GUIDANCE,
    LATENT_CHANNELS,
    check_geometry,
    latent_shape,
)
from ..magicdistill_core.video import crop_note, resize_crop
from .attached import Attached, attached_to, report

Conditioning = list[list]


class PortraitToVideo(io.ComfyNode):
    """Node `MagicDistillPortraitToVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillPortraitToVideo",
            display_name="Portrait to video",
            category="MagicDistillation/conditioning",
            description="Makes a start image the first frame of a video: CONDITIONING with the image and the model's "
            "own null prompt, and an empty LATENT of the right size. No text encoder is needed.",
            search_aliases=["magicdistill", "image to video", "i2v", "hunyuan image to video", "start image"],
            inputs=[
                io.Model.Input("model", tooltip="From Load few-step model: gives the null prompt and the usual size."),
                io.Vae.Input(
                    "vae", tooltip="The HunyuanVideo VAE (16 latent channels) that the model was trained with."
                ),
                io.Image.Input(
                    "start_image",
                    tooltip="The portrait that becomes frame 0; of a batch, the first. Another shape than width x "
                    "height is scaled and cropped: a wide one around the middle, a tall one nearer to its top.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    tooltip="Pixels, a multiple of 16; 0 takes the recipe's. Change it for another aspect; far from "
                    "the training size faces suffer.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    tooltip="Pixels, a multiple of 16; 0 takes the recipe's. Change it together with width.",
                ),
                io.Int.Input(
                    "length",
                    default=0,
                    min=0,
                    max=8193,
                    tooltip="Frames, 4n + 1 (17, 81, 129); 0 takes the recipe's. Fewer frames need less memory and "
                    "time.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Videos in one run, 1 to 64, each from its own noise. Raise it to choose among takes, as "
                    "far as memory allows.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Text conditioning in place of the null prompt. Connect it for a model trained with text, "
                    "or for a file that carries no null prompt.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Text (or null prompt) and start image."),
                io.Latent.Output(tooltip="Empty latent of the video's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        start_image: Tensor,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        positive: Conditioning | None = None,
    ) -> io.NodeOutput:
        attached = attached_to(model)
        keeps_frame = _keeps_start_frame(model, attached)
        if vae.latent_channels != LATENT_CHANNELS or vae.latent_dim != 3:
            raise CheckpointError(
                f"The VAE has {vae.latent_channels} latent channels in {vae.latent_dim} dimensions, expected a video "
                f"VAE with {LATENT_CHANNELS} (HunyuanVideo's). Choose the VAE that belongs to the model."
            )
        width, height, length = _size(attached, width, height, length)
        text = positive if positive is not None else _null_prompt(attached)
        shape = latent_shape(length, height, width, batch_size)
        # Cropped and resized as the trainer prepares its clips.
        image_latent = vae.encode(resize_crop(start_image[:1, ..., :3], height, width))
        # ComfyUI's mask is 0 where the image is given and turns it round for the network (`mask_inverted`).
        mask = image_latent.new_ones(1, 1, *shape[2:])
        mask[:, :, :1] = 0
        samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
        latent = {"samples": samples}
        values: dict[str, object] = {"concat_latent_image": image_latent, "concat_mask": mask}
        if keeps_frame:
            # The latent itself begins with the image, and no step touches it.
            samples[:, :, :1] = image_latent
            latent["noise_mask"] = mask
            values = {"guiding_frame_index": 0}
        if not any("guidance" in conditions for _, conditions in text):
            recipe = attached.recipe if attached is not None else None
            guidance = recipe.embedded_guidance if recipe is not None else None
            values["guidance"] = guidance or EMBEDDED_GUIDANCE
        conditioning = node_helpers.conditioning_set_values(text, values)
        said = f"{width} x {height}, {length} frames, {'text' if positive is not None else 'null prompt'}"
        note = crop_note(*start_image.shape[1:3], height, width)
        return io.NodeOutput(conditioning, latent, ui=report(cls, said, [note] if note else []))


def _keeps_start_frame(model: ModelPatcher, attached: Attached | None) -> bool:
    """Whether the start image stands in latent frame 0 (token replacement), and not beside the noise (concat).

    Raises:
        CheckpointError: if the MODEL takes no start image, or it is not known how.
    """
    if isinstance(model.model, HunyuanVideoI2V):
        return False
    if attached is not None and attached.family.kept_frames and isinstance(model.model, HunyuanVideo):
        return True
    raise CheckpointError(
        f"The MODEL is a {type(model.model).__name__}, expected HunyuanVideoI2V (33 input channels: noise, image, "
        f"mask), or a token-replace model whose recipe says so. Load an image-to-video model with Load few-step model."
    )


def _size(attached: Attached | None, width: int, height: int, length: int) -> tuple[int, int, int]:
    """Width, height and length with zeros replaced by the recipe's; checked."""
    if not (width and height and length):
        recipe = attached.recipe if attached is not None else None
        if recipe is None:
            raise VideoError(
                "Width, height and length cannot be taken from the model, because its file carries no recipe. Set all "
                "three in Portrait to video (for example 960, 544 and 129)."
            )
        width, height, length = width or recipe.width, height or recipe.height, length or recipe.frames
    check_geometry(length, height, width)
    return width, height, length


def _null_prompt(attached: Attached | None) -> Conditioning:
    if attached is None or attached.null_prompt is None:
        raise CheckpointError(
            "The model's file carries no null prompt, and no text is connected. Connect a text conditioning to the "
            "input positive, or use a file exported by MagicDistillation, loaded with Load few-step model."
        )
    return [[attached.null_prompt.text_states, {"pooled_output": attached.null_prompt.pooled}]]

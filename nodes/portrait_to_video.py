"""Portrait to video: turn a start image into the conditioning and the latent that an image-to-video model needs."""

import node_helpers
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.families.hunyuan_video import ARCHITECTURE as HUNYUAN_VIDEO
from ..magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from ..magicdistill_core.geometry import SIDE_MULTIPLE
from ..magicdistill_core.media.video import crop_note, resize_crop
from .attachments import attached_to
from .face_box import Boxes, face_in
from .image_input import check_images, rgb
from .prompt_conditioning import Conditioning
from .prompt_marks import prompt_notes
from .reporting import report
from .start_image import check_start, check_vae, encode_start, family_taking_images, null_prompt, with_portrait
from .transparency import hidden_colours_note
from .video_size import FIT_IMAGE, FROM_RECIPE, SizeInputs, choose_size


class PortraitToVideo(io.ComfyNode):
    """Node `MagicDistillPortraitToVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillPortraitToVideo",
            display_name="Portrait to video",
            category="MagicDistillation/conditioning",
            description="Prepares a start image as the first frame of a video, in the form that the model needs "
            "(HunyuanVideo-I2V concat or token-replace, Magic 1-For-1, Wan 2.1). Outputs a CONDITIONING with the image "
            "and the model's own null prompt, and a LATENT of the right size. Needs no text encoder.",
            search_aliases=[
                "magicdistill",
                "image to video",
                "i2v",
                "hunyuan image to video",
                "wan image to video",
                "start image",
                "talking head",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that will be sampled, from Load few-step model. Its recipe (size, length, "
                    "frame rate) and its null prompt (text conditioning in the file) are used here. Image-to-video "
                    "models from other loaders (also GGUF) need text connected to positive.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE that belongs to the model, from Load VAE: HunyuanVideo's or Wan 2.1's, both with "
                    "16 latent channels. The VAE of the other model is refused.",
                ),
                io.Image.Input(
                    "start_image",
                    tooltip="The portrait that becomes the first frame. Only the first image of a batch is used. An "
                    "image with another aspect ratio than the video is scaled and cropped: a wide one equally on the "
                    "left and right, a tall one less at the top than at the bottom. An alpha channel is laid on white.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=SIDE_MULTIPLE,
                    tooltip="Width of the video in pixels, a multiple of 16, up to 8192; other numbers are an error. "
                    "0 (default): resolution below determines the width. Set width and height for another aspect "
                    "ratio; faces get worse far from the training size.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    step=SIDE_MULTIPLE,
                    tooltip="Height of the video in pixels, a multiple of 16, up to 8192; other numbers are an error. "
                    "0 (default): resolution below determines the height.",
                ),
                io.Int.Input(
                    "length",
                    default=0,
                    min=0,
                    max=8193,
                    tooltip="Length of the video in frames: 4n + 1, such as 17, 81 or 129, up to 8193. Other numbers "
                    "are rounded: 80 becomes 81. 0 (default) uses the recipe's length. To set the length in seconds, "
                    "use the input seconds. Fewer frames need less memory and time.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of videos in one run, from 1 to 64, each with different noise. Raise it to choose "
                    "among several results if memory allows. VAE Decode joins them into one clip: pick one first with "
                    "Latent From Batch.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Text conditioning that replaces the null prompt in the model file. Not connected: the "
                    "null prompt is used, and a file without one is an error. Original releases have none: connect "
                    "CLIP Text Encode (Wan 2.1), or Text + image encode (HunyuanVideo-I2V, Magic 1-For-1).",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="Only for Wan 2.1: the start image encoded by CLIP Vision Encode (ViT-H). Not connected: "
                    "Wan 2.1 still runs, but faces drift. HunyuanVideo ignores it.",
                ),
                io.MultiType.Input(
                    "face",
                    [io.BoundingBox, io.BoundingBoxes],
                    optional=True,
                    tooltip="Position of the face in start_image, in pixels: the output bboxes of Detect Face "
                    "Landmarks or another detection node. The crop then follows the face. Not connected: the crop is "
                    "as described at start_image. Connect it if that crop cuts the face or moves it off centre.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[FROM_RECIPE, FIT_IMAGE],
                    default=FROM_RECIPE,
                    optional=True,
                    tooltip="Size of the video where width or height is 0. recipe (default): that side of the "
                    "training videos. fit the image: the aspect ratio of start_image with the area of the training "
                    "videos, so little is cropped; if only one side is 0, it follows from the other one and the "
                    "image.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=600.0,
                    step=0.1,
                    optional=True,
                    tooltip="Length of the video in seconds, up to 600, at the recipe's frame rate, rounded to the "
                    "nearest 4n + 1 frames. It replaces the input length. 0 (default) uses length instead. Without a "
                    "recipe the rate is 24 frames per second for HunyuanVideo and 16 for Wan 2.1.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The text or null prompt, with the start image."),
                io.Latent.Output(
                    tooltip="A latent of the video's size: empty, or for token-replace models with the start image as "
                    "its first frame."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            has_intermediate_output=True,
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
        clip_vision_output: io.ClipVisionOutput.Type | None = None,
        face: Boxes | None = None,
        resolution: str = FROM_RECIPE,
        seconds: float = 0.0,
    ) -> io.NodeOutput:
        family, notes = family_taking_images(model)
        notes += check_vae(vae, family.architecture)
        attached = attached_to(model)
        recipe = attached.recipe if attached is not None else None
        check_images(start_image, "start_image")
        picture = rgb(start_image[:1])
        notes += check_start(picture)
        hidden_colours = hidden_colours_note(cls.hidden.prompt, cls.hidden.unique_id, "start_image")
        notes += [] if hidden_colours is None else [hidden_colours]
        rows, columns = picture.shape[1:3]
        size_inputs = SizeInputs(width, height, length, seconds, resolution)
        size, size_notes = choose_size(size_inputs, recipe, family, rows, columns)
        notes += size_notes
        box = None
        if face is not None:
            box, face_notes = face_in(face, rows, columns)
            notes += face_notes
        cropped = crop_note(rows, columns, size.height, size.width)
        if cropped is not None:
            hint = (
                "" if resolution == FIT_IMAGE or width or height else f" With resolution {FIT_IMAGE!r} less is cropped."
            )
            notes.append(cropped + hint)
        if (clip_vision_output is None) != (family.feature_shape is None):
            notes.append(
                "this model uses CLIP features of the start image, but none are connected: faces will drift. Connect "
                "CLIP Vision Encode."
                if clip_vision_output is None
                else "clip_vision_output is ignored: this model uses no CLIP features."
            )
        text = positive if positive is not None else null_prompt(model, family)
        notes += prompt_notes(model, positive)
        # Crop and resize exactly as the trainer prepares its clips.
        image = resize_crop(picture.clamp(0, 1), size.height, size.width, box)
        start = encode_start(family, vae, image, size, batch_size, clip_vision_output)
        values = {**start.values, **with_portrait(image)}
        unguided = not any("guidance" in conditions for _, conditions in text)
        if family.architecture is HUNYUAN_VIDEO and unguided:
            values["guidance"] = (recipe.embedded_guidance if recipe is not None else None) or EMBEDDED_GUIDANCE
        conditioning = node_helpers.conditioning_set_values(text, values)
        summary = (
            f"{size.width} x {size.height}, {size.frames} frames ({size.frames / size.fps:.3g} s at {size.fps:g} fps), "
            f"{'text' if positive is not None else 'null prompt'}"
        )
        if recipe is not None and recipe.dropped_frames:
            summary += f"; the first {recipe.dropped_frames} frames are dropped when the video is saved"
        return io.NodeOutput(conditioning, start.latent, ui=report(cls, summary, notes))

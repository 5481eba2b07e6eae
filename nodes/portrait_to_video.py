"""Portrait to video: a start image as the conditioning of image-to-video, in the way of the model at hand."""

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
from .reporting import report
from .start_image import check_vae, encode_start, family_taking_images, null_prompt
from .video_size import FIT_IMAGE, FROM_RECIPE, Wish, choose_size

Conditioning = list[list]


class PortraitToVideo(io.ComfyNode):
    """Node `MagicDistillPortraitToVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillPortraitToVideo",
            display_name="Portrait to video",
            category="MagicDistillation/conditioning",
            description="Makes a start image the first frame of a video, in the way of the model at hand "
            "(HunyuanVideo-I2V concat or token-replace, Magic 1-For-1, Wan 2.1): CONDITIONING with the image and the "
            "model's own null prompt, and a LATENT of the right size. No text encoder is needed.",
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
                    tooltip="From Load few-step model: gives the null prompt and the usual size. Image-to-video models "
                    "of other loaders (GGUF too) work with text at positive.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The model's own VAE (16 latent channels): HunyuanVideo's, or Wan 2.1's. Change it with "
                    "the model; the wrong one of the two is refused.",
                ),
                io.Image.Input(
                    "start_image",
                    tooltip="The portrait that becomes frame 0; of a batch, the first. Another shape than width x "
                    "height is scaled and cropped: a wide one around the middle, a tall one nearer to its top. Change "
                    "it for another person.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=SIDE_MULTIPLE,
                    tooltip="Pixels, a multiple of 16, up to 8192; 0 leaves it to resolution. Change it for another "
                    "aspect; far from the training size faces suffer.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    step=SIDE_MULTIPLE,
                    tooltip="Pixels, a multiple of 16, up to 8192; 0 leaves it to resolution. Change it together with "
                    "width.",
                ),
                io.Int.Input(
                    "length",
                    default=0,
                    min=0,
                    max=8193,
                    tooltip="Frames, 4n + 1 (17, 81, 129), up to 8193; 0 takes the recipe's. Lower it for less "
                    "memory and time.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Videos in one run, 1 to 64, each from its own noise. Raise it to choose among takes, as "
                    "far as memory allows, and decode each by itself (Latent From Batch): VAE Decode joins them.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Text conditioning in place of the null prompt. Connect it for a model trained with text, "
                    "or for a file that carries no null prompt.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="For Wan 2.1 only: the start image as CLIP Vision Encode (ViT-H) sees it. Connect it for "
                    "these models; HunyuanVideo looks at none.",
                ),
                io.MultiType.Input(
                    "face",
                    [io.BoundingBox, io.BoundingBoxes],
                    optional=True,
                    tooltip="Where the face is in start_image, in pixels: the output bboxes of Detect Face Landmarks "
                    "or another detection node. Connect it when the crop would cut or off-centre the face.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[FROM_RECIPE, FIT_IMAGE],
                    default=FROM_RECIPE,
                    optional=True,
                    tooltip="What width and height are where they are 0. recipe: the training videos' size. fit the "
                    "image: the image's own aspect at that size's area, so that little is cropped; change to it for "
                    "portraits of another shape.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=600.0,
                    step=0.1,
                    optional=True,
                    tooltip="Length in seconds at the recipe's frame rate, up to 600, to the nearest 4n + 1 frames; 0 "
                    "uses length. Set it instead of length.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Text (or null prompt) and start image."),
                io.Latent.Output(tooltip="Latent of the video's size; empty, or with the start image in frame 0."),
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
        clip_vision_output: io.ClipVisionOutput.Type | None = None,
        face: Boxes | None = None,
        resolution: str = FROM_RECIPE,
        seconds: float = 0.0,
    ) -> io.NodeOutput:
        family, notes = family_taking_images(model)
        notes += check_vae(vae, family.architecture)
        attached = attached_to(model)
        recipe = attached.recipe if attached is not None else None
        rows, columns = start_image.shape[1:3]
        wish = Wish(width, height, length, seconds, resolution)
        size, said_of_size = choose_size(wish, recipe, family, rows, columns)
        notes += said_of_size
        box = None
        if face is not None:
            box, said_of_face = face_in(face, rows, columns)
            notes += said_of_face
        cropped = crop_note(rows, columns, size.height, size.width)
        if cropped is not None:
            hint = "" if resolution == FIT_IMAGE or width or height else f" Resolution {FIT_IMAGE!r} crops less."
            notes.append(cropped + hint)
        if (clip_vision_output is None) != (family.feature_shape is None):
            notes.append(
                "this model looks at CLIP features of the start image, and none are connected: faces will drift. "
                "Connect CLIP Vision Encode."
                if clip_vision_output is None
                else "clip_vision_output is not used: this model looks at no CLIP features."
            )
        text = positive if positive is not None else null_prompt(model, family)
        # Cropped and resized as the trainer prepares its clips.
        image = resize_crop(start_image[:1, ..., :3], size.height, size.width, box)
        start = encode_start(family, vae, image, size, batch_size, clip_vision_output)
        values = dict(start.values)
        unguided = not any("guidance" in conditions for _, conditions in text)
        if family.architecture is HUNYUAN_VIDEO and unguided:
            values["guidance"] = (recipe.embedded_guidance if recipe is not None else None) or EMBEDDED_GUIDANCE
        conditioning = node_helpers.conditioning_set_values(text, values)
        said = (
            f"{size.width} x {size.height}, {size.frames} frames ({size.frames / size.fps:.3g} s at {size.fps:g} fps), "
            f"{'text' if positive is not None else 'null prompt'}"
        )
        return io.NodeOutput(conditioning, start.latent, ui=report(cls, said, notes))

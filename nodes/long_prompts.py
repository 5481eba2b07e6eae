"""Prompt per segment: one line of text for each segment of a long video, as CONDITIONINGs."""

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..magicdistill_core.captions import find_caption
from ..magicdistill_core.errors import CheckpointError, VideoError
from ..magicdistill_core.hashes import tensors_sha256
from ..magicdistill_core.long_video.texts import numbered_lines
from ..magicdistill_core.prompt_templates import WAN, needs_image
from .attachments import attached_to
from .prompt_conditioning import Conditioning, as_conditioning
from .prompt_marks import template_for
from .reporting import report
from .text_image_encode import FROM_MODEL, encode_text_and_image

# A list of (line with the hash of its states, CONDITIONING), for Long portrait video.
SegmentPrompts = io.Custom("MAGICDISTILL_PROMPTS")


class PromptPerSegment(io.ComfyNode):
    """Node `MagicDistillSegmentPrompts`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSegmentPrompts",
            display_name="Prompt per segment",
            category="MagicDistillation/conditioning",
            description="Encodes one prompt for each segment of a long video, one line each. With the model's text "
            "encoder connected, a line is any text; without it, a line is one of the captions in the model file.",
            search_aliases=["magicdistill", "prompt travel", "prompt schedule", "long video", "storyboard"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that will be sampled, from Load few-step model. Its file decides how text is "
                    "encoded, and contains the captions.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One line for each segment, in their order. The last line counts for all later segments. "
                    "An empty line between others is an error, and so are more lines than segments.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The model's text encoder: UMT5 for Wan 2.1, llava_llama3 and clip_l for HunyuanVideo and "
                    "Magic 1-For-1. Not connected: lines are captions of the model file.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="The portrait, encoded by CLIP Vision Encode with llava_llama3_vision, for models that see "
                    "the start image in their prompts (HunyuanVideo-I2V, Magic 1-For-1).",
                ),
            ],
            outputs=[SegmentPrompts.Output(display_name="prompts", tooltip="For Long portrait video.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        prompts: str,
        clip: CLIP | None = None,
        clip_vision_output: io.ClipVisionOutput.Type | None = None,
    ) -> io.NodeOutput:
        lines = numbered_lines(prompts)
        encoded: dict[str, tuple[str, Conditioning]] = {}
        for number, line in enumerate(lines, start=1):
            if line not in encoded:
                try:
                    text = _encoded(model, line, clip, clip_vision_output)
                except CheckpointError as error:
                    raise VideoError(f"Line {number} of the prompts ({line[:60]!r}): {error}") from error
                # With another text encoder, the same words are another prompt, so other segments belong to it.
                states = tensors_sha256(*(states for states, _ in text))
                encoded[line] = (f"{line} ({states[:16]})", text)
        shown = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, start=1))
        return io.NodeOutput([encoded[line] for line in lines], ui=report(cls, shown or "no prompts", []))


def _encoded(model: ModelPatcher, line: str, clip: CLIP | None, image: io.ClipVisionOutput.Type | None) -> Conditioning:
    attached = attached_to(model)
    if clip is None:
        if attached is None:
            raise CheckpointError(
                "The model comes from another loader, so it carries no captions. Connect its text encoder to clip."
            )
        return as_conditioning(find_caption(attached.captions, line, "The model"), attached.family)
    template, _ = template_for(model)
    if template == WAN:
        conditioning: Conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(line))
        return conditioning
    if image is None and needs_image(template):
        raise CheckpointError(
            "This model sees the start image in its prompts. Connect CLIP Vision Encode (llava_llama3_vision) to "
            "clip_vision_output."
        )
    return encode_text_and_image(clip, image, line, model, FROM_MODEL)[0]

"""Text + image encode of Magic 1-For-1: what the vision-language model sees of the start image, then the text.

Given by that model, and held to here: the order (image states, then text states); the image states are Llama's last,
normalised hidden states of everything behind the user header, of the image's tokens every fourth; the text states are
HunyuanVideo's own (third hidden states from the end, its template of 95 tokens cut off, 256 tokens at most); CLIP-L's
pooled text goes into the vector. The 576 tokens of an image give 1 + 144 + 1 = 146 states, the number that it has.

Not given by it: the wording of the system turn before the image. It has six points; these six are worded here.
"""

import numbers
from typing import Any

import torch
from comfy.sd import CLIP
from comfy.text_encoders.hunyuan_video import HunyuanVideoClipModel
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError
from .reporting import report

IMAGE_STRIDE = 4
TEXT_TOKENS = 256
SYSTEM_TURN = (
    "You are shown the picture with which a video begins. Tell what belongs into the video under six headings: "
    "1. Who or what is in it, and what it is about. "
    "2. How they look: faces, hair, clothes, colours, materials, sizes, how many there are and where each stands. "
    "3. What they do, and how gestures, gaze and expression change from moment to moment. "
    "4. The place around them and what fills the background. "
    "5. Light, mood and style. "
    "6. How the camera stands, frames and moves."
)
TEMPLATE = (
    f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM_TURN}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image><|eot_id|>"
)
# <|start_header_id|>, "user" and <|end_header_id|>.
_USER_HEADER = (128006, 882, 128007)
_BLANK_LINE = 271
# More layers back than there are: ComfyUI then gives the last hidden states, normalised.
_LAST_LAYER = -(10**6)

# ComfyUI's: of each text the tokens, each a number or an embedding, with its weight.
Tokens = list[list[tuple[Any, float]]]


class TextImageEncode(io.ComfyNode):
    """Node `MagicDistillTextImageEncode`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillTextImageEncode",
            display_name="Magic 1-For-1 text + image encode",
            category="MagicDistillation/conditioning",
            description="Text conditioning as Magic 1-For-1 takes it: what a vision-language model sees of the start "
            "image, followed by the prompt. For HunyuanVideo-I2V itself use ComfyUI's own encode node.",
            search_aliases=["magicdistill", "magic141", "llava", "vlm", "clip text encode", "image prompt", "ti2v"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="From DualCLIPLoader with type hunyuan_video: llava_llama3 and clip_l. Other pairs are "
                    "refused.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip="The start image by CLIP Vision Encode with llava_llama3_vision (crop: none); of a batch, "
                    "the first. Connect the image that Portrait to video gets.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What happens in the video, up to 256 tokens (about 180 English words); more is cut off. "
                    "Empty gives the image alone. Change it to steer the motion.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Image and text, for the input positive of Portrait to video.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip: CLIP, clip_vision_output: io.ClipVisionOutput.Type, prompt: str) -> io.NodeOutput:
        seen = clip_vision_output.mm_projected
        if not isinstance(clip.cond_stage_model, HunyuanVideoClipModel):
            raise CheckpointError(
                f"The CLIP is a {type(clip.cond_stage_model).__name__}, expected HunyuanVideo's pair of Llama and "
                f"CLIP-L. Load llava_llama3 and clip_l with DualCLIPLoader, type hunyuan_video."
            )
        if seen is None:
            raise CheckpointError(
                "The CLIP vision model gives no tokens for a language model (it has no projector). Load "
                "llava_llama3_vision with Load CLIP Vision and encode the start image with it."
            )
        tokens = clip.tokenize("", llama_template=TEMPLATE, image_embeds=seen[:1])["llama"]
        image = image_states(clip, tokens)
        conditioning, lengths = [], []
        for text, values in clip.encode_from_tokens_scheduled(clip.tokenize(prompt)):
            lengths.append(text.shape[1])
            states = torch.cat([image.to(text), text[:, :TEXT_TOKENS]], dim=1)
            conditioning.append([states, {key: value for key, value in values.items() if key != "attention_mask"}])
        used = min(max(lengths), TEXT_TOKENS)
        notes = []
        if not _keeps_blank_lines(tokens):
            notes.append(
                "the tokenizer of this installation loses spaces and line breaks (transformers 5 does with Llama 3's), "
                "so text is encoded otherwise than in training. With transformers 4 it is right."
            )
        if max(lengths) > TEXT_TOKENS:
            notes.append(
                f"the prompt has {max(lengths)} tokens; the model knows {TEXT_TOKENS}, and the rest is cut off. "
                f"Shorten it."
            )
        return io.NodeOutput(conditioning, ui=report(cls, f"{image.shape[1]} image tokens, {used} of text", notes))


def image_states(clip: CLIP, tokens: Tokens) -> Tensor:
    """Llama's last hidden states of an image behind the template, from the user header on: `[1, L, width]`.

    Args:
        tokens: of `TEMPLATE` with the image in its place, as the vision model's projector gives it.
    """
    states = _last_states(clip, tokens)
    sequence = [token[0] for token in tokens[0]]
    start = _behind_user_header(sequence)
    place = next(place for place, token in enumerate(sequence) if not isinstance(token, numbers.Integral))
    end = place + sequence[place]["data"].shape[0]
    return torch.cat([states[:, start:place], states[:, place:end:IMAGE_STRIDE], states[:, end:]], dim=1)


def _last_states(clip: CLIP, tokens: Tokens) -> Tensor:
    """Every token's last hidden state. ComfyUI's own encode would cut the image's away, so Llama is asked itself."""
    model: HunyuanVideoClipModel = clip.cond_stage_model
    model.reset_clip_options()
    clip.load_model(tokens)
    model.set_clip_options({"layer": _LAST_LAYER, "execution_device": clip.patcher.load_device})
    try:
        states: Tensor = model.llama.encode_token_weights(tokens)[0]
    finally:
        model.reset_clip_options()
    return states


def _behind_user_header(sequence: list[Any]) -> int:
    width = len(_USER_HEADER)
    starts = range(len(sequence) - width)
    return next(place for place in starts if tuple(sequence[place : place + width]) == _USER_HEADER) + width


def _keeps_blank_lines(tokens: Tokens) -> bool:
    sequence = [token[0] for token in tokens[0]]
    return sequence[_behind_user_header(sequence)] == _BLANK_LINE

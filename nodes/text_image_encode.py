"""Text + image encode of Magic 1-For-1: hidden states of the start image, followed by hidden states of the text.

The layout follows Magic 1-For-1:

- Image states come first, text states follow.
- Image states are Llama's last hidden states, after its final norm, from the end of the user header on. Of the image's
  own tokens every fourth is kept. An image of 576 tokens becomes 1 + 144 + 1 = 146 states, as in Magic 1-For-1.
- Text states are HunyuanVideo's own: the third hidden states from the end, without the template's 95 tokens, at most
  256 tokens.
- CLIP-L's pooled text goes into the network's vector input.

Magic 1-For-1 does not publish the wording of the system turn before the image. The original has six points; this module
words its own six.
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
# More layers back than exist: ComfyUI then returns the last hidden states after the final norm.
_LAST_LAYER = -(10**6)

# ComfyUI's type: for each text a list of tokens, each a token number or an embedding, with its weight.
Tokens = list[list[tuple[Any, float]]]


class TextImageEncode(io.ComfyNode):
    """Node `MagicDistillTextImageEncode`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillTextImageEncode",
            display_name="Magic 1-For-1 text + image encode",
            category="MagicDistillation/conditioning",
            description="Encodes the start image and the prompt for Magic 1-For-1: image states of a vision-language "
            "model, followed by the text. For HunyuanVideo-I2V use ComfyUI's node Text Encode HunyuanVideo Image To "
            "Video instead.",
            search_aliases=["magicdistill", "magic141", "llava", "vlm", "clip text encode", "image prompt", "ti2v"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoders llava_llama3 and clip_l, from DualCLIPLoader with type hunyuan_video. "
                    "Other pairs are refused.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip="The start image, encoded by CLIP Vision Encode with llava_llama3_vision (crop: none). Use "
                    "the image that Portrait to video gets. Only the first image of a batch is used.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Describes what happens in the video, in up to 256 tokens (about 180 English words); the "
                    "rest is cut off. Leave it empty to use the image alone.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Image and text, for the input positive of Portrait to video.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: CLIP, clip_vision_output: io.ClipVisionOutput.Type, prompt: str) -> io.NodeOutput:
        image_embeds = clip_vision_output.mm_projected
        if not isinstance(clip.cond_stage_model, HunyuanVideoClipModel):
            raise CheckpointError(
                f"The CLIP is a {type(clip.cond_stage_model).__name__}, expected HunyuanVideo's pair of Llama and "
                f"CLIP-L. Load llava_llama3 and clip_l with DualCLIPLoader, type hunyuan_video."
            )
        if image_embeds is None:
            raise CheckpointError(
                "The CLIP vision model outputs no tokens for a language model, because it has no projector. Load "
                "llava_llama3_vision with Load CLIP Vision and encode the start image with it."
            )
        tokens = clip.tokenize("", llama_template=TEMPLATE, image_embeds=image_embeds[:1])["llama"]
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
                "the tokenizer of this installation loses spaces and line breaks (transformers 5 with Llama 3), so the "
                "text is not encoded as in training. Use transformers 4."
            )
        if max(lengths) > TEXT_TOKENS:
            notes.append(
                f"the prompt has {max(lengths)} tokens, but the model reads {TEXT_TOKENS}: the rest is cut off. "
                f"Shorten the prompt."
            )
        return io.NodeOutput(conditioning, ui=report(cls, f"{image.shape[1]} image tokens, {used} text tokens", notes))


def image_states(clip: CLIP, tokens: Tokens) -> Tensor:
    """Return Llama's last hidden states of an image inside the template, after the user header: `[1, L, width]`.

    Args:
        clip: HunyuanVideo's pair of text encoders, Llama and CLIP-L.
        tokens: the tokens of `TEMPLATE`, with the output of the vision model's projector instead of `<image>`.
    """
    states = _last_states(clip, tokens)
    sequence = [token[0] for token in tokens[0]]
    start = _user_header_end(sequence)
    place = next(place for place, token in enumerate(sequence) if not isinstance(token, numbers.Integral))
    end = place + sequence[place]["data"].shape[0]
    return torch.cat([states[:, start:place], states[:, place:end:IMAGE_STRIDE], states[:, end:]], dim=1)


def _last_states(clip: CLIP, tokens: Tokens) -> Tensor:
    """Return the last hidden states. Llama is called directly, because ComfyUI's own encode drops the image tokens."""
    model: HunyuanVideoClipModel = clip.cond_stage_model
    model.reset_clip_options()
    clip.load_model(tokens)
    model.set_clip_options({"layer": _LAST_LAYER, "execution_device": clip.patcher.load_device})
    try:
        states: Tensor = model.llama.encode_token_weights(tokens)[0]
    finally:
        model.reset_clip_options()
    return states


def _user_header_end(sequence: list[Any]) -> int:
    width = len(_USER_HEADER)
    starts = range(len(sequence) - width)
    return next(place for place in starts if tuple(sequence[place : place + width]) == _USER_HEADER) + width


def _keeps_blank_lines(tokens: Tokens) -> bool:
    sequence = [token[0] for token in tokens[0]]
    return sequence[_user_header_end(sequence)] == _BLANK_LINE

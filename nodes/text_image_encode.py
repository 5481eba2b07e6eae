"""Text + image encode: the text conditioning of HunyuanVideo's models, with the start image if they see it there.

It gives a model the conditioning of its training, in the *prompt template* that its recipe names. The trainer
(`magicdistill encode-prompt`) does the same:

- *Magic 1-For-1*: Llama's last hidden states of the image, from the end of the user header on, every fourth token of
  the image; then HunyuanVideo's own text states.
- *HunyuanVideo-I2V*: the third hidden states from the end of one text with the image in it. Every second (concat) or
  fourth (token-replace) token of the image; then the text and the blank line after the assistant's header. ComfyUI's
  own node keeps the end of the user's turn instead of that line.
- *HunyuanVideo*: the text alone.

CLIP-L's pooled text goes into the network's vector input.
"""

import numbers
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.text_encoders.hunyuan_video import HunyuanVideoClipModel
from comfy_api.latest import io
from comfy_extras.nodes_hunyuan import PROMPT_TEMPLATE_ENCODE_VIDEO_I2V
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.prompt_templates import (
    HUNYUAN_I2V_IMAGE_START,
    HUNYUAN_I2V_TAIL,
    HUNYUAN_I2V_TEXT_START,
    HUNYUAN_TOKENS,
    HUNYUAN_VIDEO,
    IMAGE_STRIDES,
    MAGIC141,
    MAGIC141_IMAGE_TEMPLATE,
    TITLES,
    WAN,
    PromptTemplate,
    needs_image,
)
from .prompt_conditioning import Conditioning
from .prompt_marks import marked, template_for
from .reporting import report

FROM_MODEL = "from the model"
_CHOICES = {title: template for template, title in TITLES.items() if template != WAN}
# <|start_header_id|>, "user" and <|end_header_id|>.
_USER_HEADER = (128006, 882, 128007)
_BLANK_LINE = 271
# HunyuanVideo reads the states before Llama's last two layers, Magic 1-For-1 for the image those after the final norm.
# More layers back than exist: ComfyUI then returns the last hidden states after the final norm.
_HUNYUAN_LAYER, _LAST_LAYER = -3, -(10**6)

# ComfyUI's type: for each text a list of tokens, each a token number or an embedding, with its weight.
Tokens = list[list[tuple[Any, float]]]


class TextImageEncode(io.ComfyNode):
    """Node `MagicDistillTextImageEncode`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillTextImageEncode",
            display_name="Text + image encode",
            category="MagicDistillation/conditioning",
            description="Encodes the start image and the prompt as a model's training did: for Magic 1-For-1 and "
            "HunyuanVideo-I2V image states of a vision-language model, followed by the text. Connect the model, and "
            "its file decides.",
            search_aliases=["magicdistill", "magic141", "llava", "vlm", "clip text encode", "image prompt", "ti2v"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoders llava_llama3 and clip_l, from DualCLIPLoader with type hunyuan_video. "
                    "Other pairs are refused.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip="The start image, encoded by CLIP Vision Encode with llava_llama3_vision (crop: center). "
                    "Use the image that Portrait to video gets. Only the first image of a batch is used.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Describes what happens in the video, in up to 256 tokens (about 180 English words); the "
                    "rest is cut off. Leave it empty to use the image alone.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will be sampled, from Load few-step model. Its file decides the template "
                    "below. Not connected: Magic 1-For-1's template is used.",
                ),
                io.Combo.Input(
                    "template",
                    options=[FROM_MODEL, *_CHOICES],
                    default=FROM_MODEL,
                    optional=True,
                    tooltip="How image and text are combined. from the model (default): as in the model's training; a "
                    "file that does not state it is taken for HunyuanVideo-I2V. Choose another one only for such a "
                    "file, or to compare.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Image and text, for the input positive of Portrait to video.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        clip: CLIP,
        clip_vision_output: io.ClipVisionOutput.Type,
        prompt: str,
        model: ModelPatcher | None = None,
        template: str = FROM_MODEL,
    ) -> io.NodeOutput:
        conditioning, summary, notes = encode_text_and_image(clip, clip_vision_output, prompt, model, template)
        return io.NodeOutput(conditioning, ui=report(cls, summary, notes))


def encode_text_and_image(
    clip: CLIP, image: io.ClipVisionOutput.Type | None, prompt: str, model: ModelPatcher | None, template: str
) -> tuple[Conditioning, str, list[str]]:
    """Encode a prompt as a model's training did.

    Args:
        clip: HunyuanVideo's pair of text encoders, Llama and CLIP-L.
        image: the start image, encoded by CLIP Vision Encode; None only for a template without an image.
        prompt: the text.
        model: the MODEL whose file names the template; None for Magic 1-For-1's.
        template: `FROM_MODEL`, or the title of a template.

    Returns:
        The CONDITIONING, a summary for the user, and notes.

    Raises:
        CheckpointError: if an encoder is not the one that the template needs.
    """
    if not isinstance(clip.cond_stage_model, HunyuanVideoClipModel):
        raise CheckpointError(
            f"The CLIP is a {type(clip.cond_stage_model).__name__}, expected HunyuanVideo's pair of Llama and "
            f"CLIP-L. Load llava_llama3 and clip_l with DualCLIPLoader, type hunyuan_video."
        )
    chosen, notes = _template(model, template)
    image_embeds: Tensor | None = None if image is None else image.mm_projected
    if image_embeds is None and needs_image(chosen):
        raise CheckpointError(
            "The CLIP vision model outputs no tokens for a language model, because it has no projector. Load "
            "llava_llama3_vision with Load CLIP Vision and encode the start image with it."
        )
    # ComfyUI's own encoding, with its schedules of LoRAs; it is replaced where the templates differ from it.
    native = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    made: list[tuple[Tensor, int]]
    seen: Tensor | None = None
    if image_embeds is None or chosen in (MAGIC141, HUNYUAN_VIDEO):
        if image_embeds is not None and chosen == MAGIC141:
            seen = image_states(clip, _magic141_tokens(clip, image_embeds))
        made = [(_joined(seen, text), text.shape[1]) for text, _ in native]
    else:
        seen, text, length = i2v_states(clip, prompt, image_embeds[:1], IMAGE_STRIDES[chosen])
        made = [(torch.cat([seen, text], dim=1).to(other), length) for other, _ in native]
    conditioning = [
        [states, {key: value for key, value in values.items() if key != "attention_mask"} | marked(chosen)]
        for (states, _), (_, values) in zip(made, native, strict=True)
    ]
    longest = max(length for _, length in made)
    if not _keeps_blank_lines(clip.tokenize("")["llama"]):
        notes.append(
            "the tokenizer of this installation loses spaces and line breaks (transformers 5 with Llama 3), so the "
            "text is not encoded as in training. Use transformers 4."
        )
    if longest > HUNYUAN_TOKENS:
        notes.append(
            f"the prompt has {longest} tokens, but the model reads {HUNYUAN_TOKENS}: the rest is cut off. "
            f"Shorten the prompt."
        )
    shown = 0 if seen is None else seen.shape[1]
    used = max(states.shape[1] for states, _ in made) - shown
    return conditioning, f"{TITLES[chosen]}: {shown} image tokens, {used} text tokens", notes


def _template(model: ModelPatcher | None, choice: str) -> tuple[PromptTemplate, list[str]]:
    """Return the prompt template for the node's inputs, and notes about assumptions."""
    if choice != FROM_MODEL:
        return _CHOICES[choice], []
    if model is None:
        return MAGIC141, []
    found, assumed = template_for(model)
    if found == WAN:
        raise CheckpointError(
            "The MODEL is Wan 2.1, which has another text encoder. Use CLIP Text Encode with Wan's UMT5 instead."
        )
    if not assumed:
        return found, []
    return found, [
        f"the model's file does not state how its prompts were encoded: {TITLES[found]} is assumed. For Magic "
        f"1-For-1, set template to {TITLES[MAGIC141]}."
    ]


def _joined(image: Tensor | None, text: Tensor) -> Tensor:
    text = text[:, :HUNYUAN_TOKENS]
    return text if image is None else torch.cat([image.to(text), text], dim=1)


def _magic141_tokens(clip: CLIP, image_embeds: Tensor) -> Tokens:
    tokens: Tokens = clip.tokenize("", llama_template=MAGIC141_IMAGE_TEMPLATE, image_embeds=image_embeds[:1])["llama"]
    return tokens


def i2v_states(clip: CLIP, prompt: str, image_embeds: Tensor, stride: int) -> tuple[Tensor, Tensor, int]:
    """Return the states of HunyuanVideo-I2V's release for an image and a text.

    Args:
        clip: HunyuanVideo's pair of text encoders, Llama and CLIP-L.
        prompt: the text.
        image_embeds: the output of the vision model's projector, `[1, 576, width]`.
        stride: keep every n-th token of the image.

    Returns:
        Image states `[1, L, width]`, text states of at most 252 tokens, and the text's length in tokens with the five
        after it.
    """
    tokens = clip.tokenize(prompt, llama_template=PROMPT_TEMPLATE_ENCODE_VIDEO_I2V, image_embeds=image_embeds)["llama"]
    states = _states(clip, tokens, _HUNYUAN_LAYER)
    image_end = HUNYUAN_I2V_IMAGE_START + image_embeds.shape[1]
    text = states[:, HUNYUAN_I2V_TEXT_START + image_embeds.shape[1] - 1 :]
    kept = text[:, : min(HUNYUAN_TOKENS, text.shape[1]) - HUNYUAN_I2V_TAIL]
    return states[:, HUNYUAN_I2V_IMAGE_START:image_end:stride], torch.cat([kept, text[:, -1:]], dim=1), text.shape[1]


def image_states(clip: CLIP, tokens: Tokens) -> Tensor:
    """Return Llama's last hidden states of an image inside the template, after the user header: `[1, L, width]`.

    Args:
        clip: HunyuanVideo's pair of text encoders, Llama and CLIP-L.
        tokens: the tokens of `MAGIC141_IMAGE_TEMPLATE`, with the output of the vision model's projector instead of
            `<image>`.
    """
    states = _states(clip, tokens, _LAST_LAYER)
    sequence = [token[0] for token in tokens[0]]
    start = _user_header_end(sequence)
    place = next(place for place, token in enumerate(sequence) if not isinstance(token, numbers.Integral))
    end = place + sequence[place]["data"].shape[0]
    return torch.cat([states[:, start:place], states[:, place : end : IMAGE_STRIDES[MAGIC141]], states[:, end:]], dim=1)


def _states(clip: CLIP, tokens: Tokens, layer: int) -> Tensor:
    """Return Llama's hidden states of a layer. It is called directly: ComfyUI's own encode cuts them in its own way."""
    model: HunyuanVideoClipModel = clip.cond_stage_model
    model.reset_clip_options()
    clip.load_model(tokens)
    model.set_clip_options({"layer": layer, "execution_device": clip.patcher.load_device})
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

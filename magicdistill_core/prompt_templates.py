"""The ways in which text, with or without the start image, is encoded for a model: its *prompt template*.

The trainer's encoders and the nodes use the same names and numbers, and model files store the name in their recipe.
"""

from typing import Literal

PromptTemplate = Literal["hunyuan_video", "hunyuan_i2v_concat", "hunyuan_i2v_token_replace", "magic141", "wan"]

# Text alone, in HunyuanVideo's template for text-to-video.
HUNYUAN_VIDEO: PromptTemplate = "hunyuan_video"
# The start image, then the text, in the template of HunyuanVideo-I2V's release. Its two models keep different shares of
# the image's tokens.
HUNYUAN_I2V_CONCAT: PromptTemplate = "hunyuan_i2v_concat"
HUNYUAN_I2V_TOKEN_REPLACE: PromptTemplate = "hunyuan_i2v_token_replace"
# The start image in one template, then the text in HunyuanVideo's.
MAGIC141: PromptTemplate = "magic141"
# Text alone, without a template.
WAN: PromptTemplate = "wan"

TITLES: dict[PromptTemplate, str] = {
    HUNYUAN_VIDEO: "HunyuanVideo (text only)",
    HUNYUAN_I2V_CONCAT: "HunyuanVideo-I2V concat",
    HUNYUAN_I2V_TOKEN_REPLACE: "HunyuanVideo-I2V token-replace",
    MAGIC141: "Magic 1-For-1",
    WAN: "Wan 2.1",
}
# The templates that show the start image to the language model, and the share of its tokens that they keep: every n-th.
IMAGE_STRIDES: dict[PromptTemplate, int] = {HUNYUAN_I2V_CONCAT: 2, HUNYUAN_I2V_TOKEN_REPLACE: 4, MAGIC141: 4}
# LLaVA's vision model (CLIP ViT-L at 336 pixels) makes 24 x 24 tokens of an image.
IMAGE_TOKENS = 576

# HunyuanVideo's networks read at most this many tokens after the template's beginning. The first template's own end of
# the turn is one of them; the image templates have four more tokens there, of which one is kept.
HUNYUAN_TOKENS = 256
HUNYUAN_TEXT_START = 95
HUNYUAN_I2V_TEXT_START = 103
# Where the image's token is in HunyuanVideo-I2V's template.
HUNYUAN_I2V_IMAGE_START = 5
# The tokens after the text of HunyuanVideo-I2V's template: end of turn, the assistant's header of three, a blank line.
# Only the blank line is kept.
HUNYUAN_I2V_TAIL = 5

# Magic 1-For-1's own wording of the system turn before the image is not part of this project. It has six points, as has
# this one.
_MAGIC141_SYSTEM = (
    "You are shown the picture with which a video begins. Tell what belongs into the video under six headings: "
    "1. Who or what is in it, and what it is about. "
    "2. How they look: faces, hair, clothes, colours, materials, sizes, how many there are and where each stands. "
    "3. What they do, and how gestures, gaze and expression change from moment to moment. "
    "4. The place around them and what fills the background. "
    "5. Light, mood and style. "
    "6. How the camera stands, frames and moves."
)
MAGIC141_IMAGE_TEMPLATE = (
    f"<|start_header_id|>system<|end_header_id|>\n\n{_MAGIC141_SYSTEM}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image><|eot_id|>"
)
# The tokens of Llama 3 for `<|start_header_id|>`, `user`, `<|end_header_id|>`. Magic 1-For-1 keeps what follows them.
USER_HEADER = "<|start_header_id|>user<|end_header_id|>"


def i2v_template(i2v_mode: str) -> PromptTemplate:
    """Return the template of HunyuanVideo-I2V for an image-to-video mode, `concat` or `token_replace`."""
    return HUNYUAN_I2V_TOKEN_REPLACE if i2v_mode == "token_replace" else HUNYUAN_I2V_CONCAT


def mode_of_template(template: PromptTemplate) -> str | None:
    """Return the image-to-video mode of the models that a template is for; None if it serves several."""
    if template == HUNYUAN_I2V_TOKEN_REPLACE:
        return "token_replace"
    return "concat" if template in (HUNYUAN_I2V_CONCAT, MAGIC141, WAN) else None


def architecture_of_template(template: PromptTemplate) -> str:
    """Return the name of the architecture (`Recipe.family`) that a template is for."""
    return "wan" if template == WAN else "hunyuan_video"


def needs_image(template: PromptTemplate) -> bool:
    """Return whether a template shows the start image to the language model."""
    return template in IMAGE_STRIDES

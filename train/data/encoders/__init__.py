"""Text encoders of the families: a caption, and for some models the start image, become text conditioning.

There is one module per family. The weights come from the folder of a diffusers pipeline, of which only the tokenizers
and encoders are read.
"""

from pathlib import Path

import torch

from magicdistill_core.prompt_templates import HUNYUAN_VIDEO, MAGIC141, WAN, PromptTemplate

from .base import PromptError, TextEncoder
from .folders import checked, files_sha256, own_template, templates_of

__all__ = ["PromptError", "TextEncoder", "files_sha256", "load_text_encoder", "own_template", "templates_of"]


def load_text_encoder(
    pipeline: Path,
    template: PromptTemplate | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> TextEncoder:
    """Load the text encoder of a diffusers pipeline for a prompt template.

    Args:
        pipeline: folder of a diffusers HunyuanVideo, HunyuanVideo-I2V or Wan pipeline.
        template: one of `templates_of(pipeline)`; None is the pipeline's own (`own_template`).
        device: device of the encoders.
        dtype: dtype of the encoders.

    Raises:
        CheckpointError: if the folder holds no such pipeline, or a part of it is missing or cannot be loaded.
        PromptError: if the pipeline's encoders cannot be used for the template.
    """
    template = checked(pipeline, template)
    device = torch.device(device)
    # Imported here because each of them takes seconds.
    if template == WAN:
        from .wan import load_wan

        return load_wan(pipeline, device, dtype)
    if template == MAGIC141:
        from .magic141 import load_magic141

        return load_magic141(pipeline, device, dtype)
    if template == HUNYUAN_VIDEO:
        from .hunyuan_video import load_hunyuan_video

        return load_hunyuan_video(pipeline, device, dtype)
    from .hunyuan_i2v import load_hunyuan_i2v

    return load_hunyuan_i2v(pipeline, template, device, dtype)

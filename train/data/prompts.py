"""Encoding of prompts to small files. Training and sampling read them and need no text encoder."""

import logging
from pathlib import Path

import torch

from magicdistill_core.errors import CheckpointError, MagicDistillError, cause
from magicdistill_core.families import all_architectures
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.media.video import read_image
from magicdistill_core.null_prompt import TEMPLATE_ENTRY, null_prompt_tensors
from magicdistill_core.prompt_templates import (
    HUNYUAN_VIDEO,
    TITLES,
    PromptTemplate,
    architecture_of_template,
    needs_image,
)
from magicdistill_core.safetensors_file import write_safetensors
from magicdistill_core.writable import check_output_file

from .encoders import load_text_encoder, own_template
from .finite import not_finite

logger = logging.getLogger(__name__)


def encode_prompt(
    pipeline: Path,
    prompt: str,
    out: Path,
    device: torch.device | str = "cpu",
    image: Path | None = None,
    template: PromptTemplate | None = None,
) -> NullPrompt:
    """Encode a prompt with the text encoders of a diffusers pipeline, and write a file for `model.null_prompt`.

    Args:
        pipeline: folder of a diffusers HunyuanVideo or Wan pipeline; only tokenizers and text encoders are read.
        prompt: the text; "" is the null prompt.
        out: the file (.safetensors) to write.
        device: device of the text encoders.
        image: the start image for a prompt template that shows it to the language model. The file then fits only this
            image. None uses the text alone.
        template: the prompt template. None is the pipeline's own; without an image, HunyuanVideo's for text alone also
            for an image-to-video pipeline, with a warning.

    Returns:
        The written text conditioning, in bfloat16 on the CPU, without padding tokens.

    Raises:
        OutputError: if `out` cannot be written. Nothing is loaded then.
        VideoError: if the image cannot be read.
        PromptError: if the template needs an image and there is none, or the other way round; if the prompt is too
            long, or the pipeline's encoders do not serve the template.
        CheckpointError: if the folder holds no such pipeline, a part of it cannot be loaded, or its result is not
            finite.
    """
    check_output_file(out)
    unit = None if image is None else frames_to_unit(read_image(image)[None])[0]
    chosen = template or _usual_template(pipeline, with_image=image is not None)
    encoder = load_text_encoder(pipeline, chosen, device)
    try:
        found = encoder.encode(prompt, unit)
    except MagicDistillError:
        raise
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"The text encoders in {pipeline} need more memory than {device} has ({cause(error)}). Use --device cpu."
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"The text encoders in {pipeline} cannot be used ({cause(error)}). Download the folder again."
        ) from error
    encoded = NullPrompt(found.text_states.cpu(), None if found.pooled is None else found.pooled.cpu())
    for name, tensor in (("text states", encoded.text_states), ("pooled text", encoded.pooled)):
        if tensor is not None and (bad := not_finite(tensor)):
            raise CheckpointError(
                f"The text encoders in {pipeline} made {name} with {bad}. Nothing was written. Use --device cpu, or "
                f"download the folder again."
            )
    described = {"prompt": prompt, TEMPLATE_ENTRY: chosen} | ({} if image is None else {"image": image.name})
    write_safetensors(out, null_prompt_tensors(encoded), described | {"format": "pt"})
    return encoded


def negative_text(pipeline: Path) -> str:
    """Return the negative prompt that the release of a pipeline's model publishes; "" if it publishes none.

    Args:
        pipeline: folder of a diffusers HunyuanVideo or Wan pipeline.

    Raises:
        CheckpointError: if the folder holds no such pipeline.
    """
    name = architecture_of_template(own_template(pipeline))
    return next(a.negative_text for a in all_architectures() if a.name == name)


def _usual_template(pipeline: Path, with_image: bool) -> PromptTemplate:
    own = own_template(pipeline)
    if with_image or not needs_image(own):
        return own
    logger.warning(
        "%s was trained with the start image in every prompt, and this prompt has none. As a null prompt for all clips "
        "that is possible, but the teacher is then outside of what it was trained for. To see the difference, encode a "
        "prompt with --image and compare samples",
        TITLES[own],
    )
    return HUNYUAN_VIDEO

"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magicdistill_core.errors import MagicDistillError

if TYPE_CHECKING:
    import torch


class Format(StrEnum):
    """A format of `export`."""

    COMFYUI = "comfyui"
    INT8 = "int8"
    LORA = "lora"
    DIFFUSERS = "diffusers"


class Dtype(StrEnum):
    """A floating-point type."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Template(StrEnum):
    """A prompt template of `encode-prompt` (`magicdistill_core.prompt_templates`)."""

    HUNYUAN_VIDEO = "hunyuan_video"
    HUNYUAN_I2V_CONCAT = "hunyuan_i2v_concat"
    HUNYUAN_I2V_TOKEN_REPLACE = "hunyuan_i2v_token_replace"
    MAGIC141 = "magic141"
    WAN = "wan"


STORED = {Dtype.FP32: "float32", Dtype.BF16: "bfloat16", Dtype.FP16: "float16"}

ImageEncoderOption = Annotated[
    Path | None, typer.Option(help="For Wan 2.1 only: the image_encoder folder (CLIP) of its diffusers release.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, ...; by default the first GPU, or the CPU if there is none."),
]
VaeOption = Annotated[
    Path | None,
    typer.Option("--vae", help="TAEHV file, or VAE folder of a diffusers release; by default the pocket VAE."),
]


def device_of(name: str | None) -> "torch.device":
    """Return the device of an option.

    Args:
        name: its name; None is the first GPU, or the CPU if there is none.

    Raises:
        MagicDistillError: if there is no such device.
    """
    import torch

    from ..distributed import available_device

    if name is None:
        return available_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MagicDistillError(
            f"The device {name!r} cannot be used ({reason}). Expected cpu, cuda, or cuda with a number, such as cuda:1."
        ) from error
    return device

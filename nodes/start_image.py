"""How a start image enters a video, family by family, and which VAEs can encode it."""

from dataclasses import dataclass

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan.vae import WanVAE
from comfy.model_base import HunyuanVideo
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.taesd.taehv import TAEHV
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.families import hunyuan_video, wan
from ..magicdistill_core.families.base import Architecture, Family
from ..magicdistill_core.geometry import LATENT_CHANNELS, latent_shape
from ..magicdistill_core.sizes import VideoSize
from .attachments import attached_to, known_family

_GRAY = 0.5


@dataclass(frozen=True)
class Start:
    """A start image as a sampler takes it: values for every conditioning, and the latent to begin with."""

    values: dict[str, object]
    latent: dict[str, Tensor]


def family_taking_images(model: ModelPatcher) -> tuple[Family, list[str]]:
    """The family of a MODEL that takes a start image, and what had to be assumed about it.

    Raises:
        CheckpointError: if the MODEL takes no start image.
    """
    family = known_family(model)
    if family is None and type(model.model) is HunyuanVideo:
        return hunyuan_video.TOKEN_REPLACE, [
            "this MODEL has 16 channels and says no more: it is assumed to take its start image by token replacement "
            "(HunyuanVideo-I2V v2). If it is text-to-video, no start image can work; Load few-step model tells a file "
            "with a recipe apart, and corrects what this ComfyUI computes otherwise for token replacement."
        ]
    if family is None or not family.takes_image:
        found = family.title if family is not None else type(model.model).__name__
        raise CheckpointError(
            f"The MODEL is a {found}, expected HunyuanVideoI2V (33 input channels: noise, image, mask), a HunyuanVideo "
            f"of 16 with token replacement, or Wan 2.1 image-to-video of 36. Load an image-to-video model with Load "
            f"few-step model."
        )
    return family, []


def check_vae(vae: VAE, architecture: Architecture) -> list[str]:
    """Whether a VAE's latents are those that the transformer knows, by the VAE's class.

    HunyuanVideo's and Wan's have the same number of channels, so that a wrong one would run and give noise.

    Returns:
        What is to be said of a VAE of a class from elsewhere, which is trusted.

    Raises:
        CheckpointError: if the VAE is of another family, or no video VAE of 16 channels.
    """
    if vae.latent_channels != LATENT_CHANNELS or vae.latent_dim != 3:
        raise CheckpointError(
            f"The VAE has {vae.latent_channels} latent channels in {vae.latent_dim} dimensions, expected a video "
            f"VAE with {LATENT_CHANNELS} ({architecture.title}'s). Choose the VAE that belongs to the model."
        )
    network = vae.first_stage_model
    name = type(network).__name__
    found = _vae_architecture(network)
    if found is architecture:
        return []
    if found is None and not type(network).__module__.startswith("comfy."):
        return [f"the VAE is a {name}, unknown here: it is trusted to be {architecture.title}'s."]
    whose = f"{found.title}'s" if found is not None else "another model's"
    raise CheckpointError(
        f"The VAE is {whose} (a {name}), but the MODEL is {architecture.title}. Their latents look alike and mean "
        f"different things: the video would be noise. Choose {architecture.title}'s VAE."
    )


def _vae_architecture(network: torch.nn.Module) -> Architecture | None:
    """Whose latents a VAE of ComfyUI makes; None if neither family's."""
    if isinstance(network, TAEHV):
        # ComfyUI gives it HunyuanVideo's scale, or none for Wan's.
        scaled = network.latent_format is comfy.latent_formats.HunyuanVideo
        return hunyuan_video.ARCHITECTURE if scaled else wan.ARCHITECTURE
    if isinstance(network, WanVAE):
        return wan.ARCHITECTURE
    return hunyuan_video.ARCHITECTURE if type(network) is AutoencoderKL else None


def encode_start(
    family: Family, vae: VAE, image: Tensor, size: VideoSize, batch: int, seen: io.ClipVisionOutput.Type | None
) -> Start:
    """Encode a start image of the video's own width and height.

    Args:
        image: `[1, H, W, 3]` in [0, 1].
        batch: videos in one run.
        seen: what a CLIP vision model makes of the image, for families that look at it.
    """
    shape = latent_shape(size.frames, size.height, size.width, batch)
    samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    pixels = image
    if family.image_covers_video:
        # Wan's image half is the encoding of the image with gray frames behind it, and not of the image alone.
        pixels = image.new_full((size.frames, *image.shape[1:]), _GRAY)
        pixels[:1] = image
    encoded = vae.encode(pixels)
    # ComfyUI's mask is 0 where the image is given and turns it round for the network.
    mask = encoded.new_ones(1, 1, *shape[2:])
    mask[:, :, :1] = 0
    if family.kept_frames:
        # The latent itself begins with the image, and no step touches it.
        samples[:, :, :1] = encoded
        return Start({"guiding_frame_index": 0}, {"samples": samples, "noise_mask": mask})
    values: dict[str, object] = {"concat_latent_image": encoded, "concat_mask": mask}
    if family.feature_shape is not None and seen is not None:
        values["clip_vision_output"] = seen
    return Start(values, {"samples": samples})


def null_prompt(model: ModelPatcher, family: Family) -> list[list]:
    """The model's own null prompt as CONDITIONING, padded where the network expects that.

    Raises:
        CheckpointError: if the model carries none.
    """
    attached = attached_to(model)
    if attached is None or attached.null_prompt is None:
        raise CheckpointError(
            "The model's file carries no null prompt, and no text is connected. Connect a text conditioning to the "
            "input positive, or use a file exported by MagicDistillation, loaded with Load few-step model."
        )
    text, pooled = attached.null_prompt.text_states, attached.null_prompt.pooled
    if family.architecture is wan.ARCHITECTURE and text.shape[1] < wan.TEXT_TOKENS:
        text = torch.nn.functional.pad(text, (0, 0, 0, wan.TEXT_TOKENS - text.shape[1]))
    return [[text, {} if pooled is None else {"pooled_output": pooled}]]

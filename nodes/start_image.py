"""Encode the start image as each family needs it, and check the VAE that encodes it."""

from dataclasses import dataclass

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.taesd.taehv import TAEHV
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError, VideoError
from ..magicdistill_core.families import hunyuan_video, wan
from ..magicdistill_core.families.base import Architecture, Family
from ..magicdistill_core.geometry import LATENT_CHANNELS, latent_frames, latent_shape
from ..magicdistill_core.sizes import VideoSize
from .attachments import FLF2V_MARK, assumed_family, attached_to, known_family
from .prompt_conditioning import Conditioning, as_conditioning

_PORTRAIT = "magicdistill_portrait"
_GRAY = 0.5
_EXCESS = 0.1


@dataclass(frozen=True)
class Start:
    """An encoded start image.

    Attributes:
        values: the entries to add to every conditioning.
        latent: the LATENT that sampling starts from.
    """

    values: dict[str, object]
    latent: dict[str, Tensor]


def family_taking_images(model: ModelPatcher) -> tuple[Family, list[str]]:
    """Return the family of a MODEL that takes a start image, and notes about assumptions.

    Args:
        model: the MODEL, from any loader.

    Raises:
        CheckpointError: if the MODEL takes no start image.
    """
    family = assumed_family(model)
    if family is not None and known_family(model) is None:
        return family, [
            "this MODEL has 16 input channels, which fits two kinds of model: it is assumed to take its start image by "
            "token replacement (HunyuanVideo-I2V v2). A text-to-video model cannot use a start image. Load few-step "
            "model decides this for a file with a recipe, and corrects how ComfyUI computes token replacement."
        ]
    if family is None or not family.takes_image:
        found = family.title if family is not None else type(model.model).__name__
        if model.model.model_config.unet_config.get(FLF2V_MARK):
            found = "Wan 2.1 FLF2V, which makes a video from its first and last frame"
        raise CheckpointError(
            f"The MODEL is a {found}, expected HunyuanVideoI2V (33 input channels: noise, image, mask), HunyuanVideo "
            f"with token replacement (16), or Wan 2.1 image-to-video (36). Load an image-to-video model with Load "
            f"few-step model."
        )
    return family, []


def check_vae(vae: VAE, architecture: Architecture) -> list[str]:
    """Check by its class that a VAE belongs to the transformer.

    HunyuanVideo's and Wan's VAEs have the same number of channels, so a wrong one would run and produce noise.

    Args:
        vae: the VAE.
        architecture: the transformer of the MODEL.

    Returns:
        A note if the VAE's class comes from another pack; such a VAE is trusted. Else an empty list.

    Raises:
        CheckpointError: if the VAE belongs to another family, or is not a video VAE with 16 channels.
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
        return [f"the VAE is a {name} from another pack: it is assumed to be {architecture.title}'s."]
    whose = f"{found.title}'s" if found is not None else "another model's"
    raise CheckpointError(
        f"The VAE is {whose} (a {name}), but the MODEL is {architecture.title}. Their latents have the same "
        f"shape but different contents: the video would be noise. Choose {architecture.title}'s VAE."
    )


def _vae_architecture(network: torch.nn.Module) -> Architecture | None:
    """Return the architecture that a VAE of ComfyUI belongs to; None if it belongs to neither."""
    if isinstance(network, TAEHV):
        # ComfyUI sets HunyuanVideo's latent scale on a TAEHV for HunyuanVideo, and none on one for Wan.
        scaled = network.latent_format is comfy.latent_formats.HunyuanVideo
        return hunyuan_video.ARCHITECTURE if scaled else wan.ARCHITECTURE
    if isinstance(network, WanVAE):
        return wan.ARCHITECTURE
    return hunyuan_video.ARCHITECTURE if type(network) is AutoencoderKL else None


def check_start(picture: Tensor) -> list[str]:
    """Check the numbers of a start image.

    Args:
        picture: RGB `[1, H, W, 3]`, in [0, 1] if it is valid.

    Returns:
        A note if values are clearly outside [0, 1]. Resizing makes small excesses, which are no reason for a note.

    Raises:
        VideoError: if it contains NaN or infinite values, which would make every frame black.
    """
    if not torch.isfinite(picture).all():
        raise VideoError(
            "The start image contains NaN or infinite values, expected numbers from 0 to 1. The node that made it has "
            "failed, often a VAE in fp16: run that VAE in bf16 or fp32, or load the image from a file."
        )
    low, high = float(picture.min()), float(picture.max())
    if low >= -_EXCESS and high <= 1 + _EXCESS:
        return []
    return [
        f"the start image has values from {low:.3g} to {high:.3g}, but an IMAGE has values from 0 to 1: the rest is "
        f"cut off. If the picture looks wrong, scale it to 0 to 1 first."
    ]


def encode_start(
    family: Family, vae: VAE, image: Tensor, size: VideoSize, batch: int, features: io.ClipVisionOutput.Type | None
) -> Start:
    """Encode a start image that already has the video's width and height.

    Args:
        family: how the image enters the network.
        vae: the VAE that belongs to the family.
        image: `[1, H, W, 3]` in [0, 1]; for a family that encodes it together with gray frames also the first 4n + 1
            frames of the video.
        size: width, height and frames of the video.
        batch: number of videos in one run.
        features: CLIP vision features of the image, for families that use them; None if none are connected.
    """
    shape = latent_shape(size.frames, size.height, size.width, batch)
    samples = torch.zeros(
        shape,
        device=comfy.model_management.intermediate_device(),
        dtype=comfy.model_management.intermediate_dtype(),
    )
    pixels = image
    if family.image_covers_video:
        # Wan encodes the image followed by gray frames, not the image alone.
        pixels = image.new_full((size.frames, *image.shape[1:]), _GRAY)
        pixels[: len(image)] = image
    encoded = vae.encode(pixels)
    # ComfyUI's mask is 0 for the start image; ComfyUI inverts it for the network.
    mask = encoded.new_ones(1, 1, *shape[2:])
    mask[:, :, : latent_frames(len(image))] = 0
    if family.kept_frames:
        # The image is the first frame of the latent, and sampling does not change it.
        samples[:, :, :1] = encoded
        return Start({"guiding_frame_index": 0}, {"samples": samples, "noise_mask": mask})
    values: dict[str, object] = {"concat_latent_image": encoded, "concat_mask": mask}
    if family.feature_shape is not None and features is not None:
        values["clip_vision_output"] = features
    return Start(values, {"samples": samples})


def with_portrait(image: Tensor) -> dict[str, object]:
    """Return the entry of a CONDITIONING that keeps the start image itself.

    Args:
        image: the start image in the video's size, `[1, H, W, 3]` in [0, 1].
    """
    return {_PORTRAIT: image}


def portrait_in(conditioning: Conditioning) -> Tensor:
    """Return the start image that Portrait to video keeps in its CONDITIONING, `[1, H, W, 3]`.

    Args:
        conditioning: the CONDITIONING of Portrait to video.

    Raises:
        VideoError: if it comes from another node.
    """
    portrait = conditioning[0][1].get(_PORTRAIT) if conditioning else None
    if not isinstance(portrait, Tensor):
        raise VideoError(
            "The conditioning does not come from Portrait to video, so the portrait itself is missing. Connect both "
            "outputs of Portrait to video; connect text to its input positive."
        )
    return portrait


def null_prompt(model: ModelPatcher, family: Family) -> Conditioning:
    """Return the model's own null prompt as CONDITIONING.

    The null prompt is the text conditioning in the model file, for use without a prompt.

    Args:
        model: the MODEL.
        family: its family.

    Raises:
        CheckpointError: if the model carries no null prompt.
    """
    attached = attached_to(model)
    if attached is None or attached.null_prompt is None:
        raise CheckpointError(
            "The model's file carries no null prompt, and no text is connected. Connect a text conditioning to the "
            "input positive, or use a file exported by MagicDistillation, loaded with Load few-step model."
        )
    return as_conditioning(attached.null_prompt, family)

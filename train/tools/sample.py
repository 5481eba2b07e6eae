"""Sample a video from a still image and a model file, without ComfyUI.

A *recipe* is the sampling settings that a model file stores: steps, shift, sampler and the video's size.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.errors import CheckpointError, VideoError
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.flow import (
    SamplerCallback,
    few_step_sigmas,
)
from magicdistill_core.geometry import check_geometry, latent_frames, unit_to_frames
from magicdistill_core.media.video import crop_note, read_image, resize_crop
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.pocket.files import VAE as POCKET_VAE
from magicdistill_core.recipe import Recipe, Sampler
from magicdistill_core.writable import check_output_file

from ..data.start_images import load_start_images
from ..data.vae import load_vae
from ..networks.network import load_network
from ..networks.sampling import generate
from ..networks.weights import load_weights, null_prompt_of

logger = logging.getLogger(__name__)

SAMPLING_TAG = "magicdistill.sampling"
_DEFAULT_FPS = 24.0
# Only pocket networks can use the pocket VAE's latents. Networks of a release have a hidden size of 3072.
_POCKET_HIDDEN = 256

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SampleSettings:
    """All settings of a sample except the weights and the start image.

    Attributes:
        seed: seed of the starting noise.
        steps: number of model calls.
        shift: timestep shift s of the schedule; uniform t becomes `s * t / (1 + (s - 1) * t)`.
        sampler: `euler` or `renoise`.
        width: width of the video in pixels.
        height: height of the video in pixels.
        frames: frames of the video, 4n + 1.
        fps: frames per second of the written file.
    """

    seed: int
    steps: int
    shift: float
    sampler: Sampler
    width: int
    height: int
    frames: int
    fps: float


def resolve_settings(
    recipe: Recipe | None,
    source: str,
    seed: int = 0,
    steps: int | None = None,
    shift: float | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
) -> SampleSettings:
    """Fill missing settings from the recipe, and check the geometry.

    Args:
        recipe: the recipe of the model file; None if it has none.
        source: name of the model file, for messages.
        seed: seed of the starting noise.
        steps: number of model calls; None takes the recipe's value.
        shift: timestep shift; None takes the recipe's value.
        width: width in pixels; None takes the recipe's value.
        height: height in pixels; None takes the recipe's value.
        frames: frames of the video, 4n + 1; None takes the recipe's value.

    Returns:
        The settings. Without a recipe the sampler is `euler` and the frame rate 24.

    Raises:
        CheckpointError: if there is no recipe and a setting is None.
        VideoError: if width, height or frames are not possible for the latents.
    """
    requested = {"steps": steps, "shift": shift, "width": width, "height": height, "frames": frames}
    values = {n: v if v is not None else getattr(recipe, n, None) for n, v in requested.items()}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise CheckpointError(
            f"{source} carries no recipe, and these settings have no value: {', '.join(missing)}. Set them. (A 4-step "
            f"generator of Magic 1-For-1 needs 4 steps at shift 5.)"
        )
    if recipe is not None and recipe.guidance_scale != 1:
        logger.warning("The recipe requires guidance %g. This command samples without guidance", recipe.guidance_scale)
    sampler: Sampler = recipe.sampler if recipe is not None else "euler"
    fps = recipe.fps if recipe is not None else _DEFAULT_FPS
    settings = SampleSettings(seed=seed, sampler=sampler, fps=fps, **values)  # type: ignore[arg-type]
    check_geometry(settings.frames, settings.height, settings.width)
    return settings


def usual_precision(device: torch.device | str) -> Precision:
    """Return the default precision of a device: fp32 on a CPU, where bf16 is slow, else bf16."""
    return "fp32" if torch.device(device).type == "cpu" else "bf16"


def sample_file(
    file: Path,
    image: Path,
    out: Path,
    *,
    base: Path | None = None,
    vae: Path | None = None,
    image_encoder: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    shift: float | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    i2v_mode: str | None = None,
    precision: Precision | None = None,
    device: torch.device | str = "cpu",
    callback: SamplerCallback | None = None,
) -> SampleSettings:
    """Sample a video from a still image and write it as an mp4 with recipe and settings in its tags.

    Args:
        file: a teacher or generator (single file or diffusers folder), or a generator LoRA.
        image: the start image. It is cropped to the aspect ratio and resized; tall images keep more of their top.
        out: path of the mp4.
        base: for a LoRA, the model file or diffusers folder on which it was trained; None for a complete model.
        vae: VAE for `load_vae`; None means the pocket VAE, which works with pocket networks only.
        image_encoder: folder of the CLIP image encoder, for families that use its features; None for the others.
        seed: seed of the starting noise.
        steps: number of model calls; None takes the recipe's value.
        shift: timestep shift; None takes the recipe's value.
        width: width in pixels; None takes the recipe's value.
        height: height in pixels; None takes the recipe's value.
        frames: frames of the video, 4n + 1; None takes the recipe's value.
        i2v_mode: how the network receives the start image (`concat` or `token_replace`), for a file that does not
            determine it; else None.
        precision: precision of the network's computations; None means fp32 on a CPU and bf16 elsewhere.
        device: device of the network, the VAE and the image encoder.
        callback: called after each model call, as in `magicdistill_core.flow`; None for no callback.

    Returns:
        The settings used.

    Raises:
        MagicDistillError: if a file is unusable, a setting is missing or invalid, or `out` cannot be written.
    """
    if out.suffix.lower() != ".mp4":
        raise VideoError(f"The video's file name is {out.name}. Expected a name that ends in .mp4.")
    check_output_file(out)
    picture = read_image(image)
    checkpoint = load_weights(file, base, i2v_mode)
    settings = resolve_settings(checkpoint.recipe, checkpoint.source, seed, steps, shift, width, height, frames)
    prompt = null_prompt_of(checkpoint)
    decoder = load_vae(_vae_path(vae, checkpoint), device)
    if decoder.architecture != checkpoint.architecture.name:
        raise CheckpointError(
            f"{checkpoint.source} is a {checkpoint.architecture.title} network, but {vae} makes latents of "
            f"{decoder.architecture}. Set --vae to the VAE of the network's release."
        )
    encoder = load_start_images(decoder, image_encoder, device)
    network = load_network(checkpoint, DTYPES[precision or usual_precision(device)], device)

    if note := crop_note(picture.shape[0], picture.shape[1], settings.height, settings.width):
        logger.warning(note)
    # Resized in floating point without rounding, as the nodes do with a loaded image.
    unit = rearrange(resize_crop(picture.float() / 255, settings.height, settings.width), "h w c -> 1 c h w")
    start = encoder.encode(unit.to(device), settings.frames)
    sigmas = few_step_sigmas(settings.steps, settings.shift)
    guidance = checkpoint.recipe.embedded_guidance if checkpoint.recipe is not None else None
    latents = generate(
        network,
        prompt,
        start,
        latent_frames(settings.frames),
        sigmas,
        settings.sampler,
        settings.seed,
        callback,
        guidance,
    )
    video = unit_to_frames(decoder.decode(latents).cpu())
    write_video(out, video, settings.fps, _tags(checkpoint, settings))
    return settings


def _vae_path(vae: Path | None, checkpoint: Checkpoint) -> Path:
    if vae is not None:
        return vae
    if checkpoint.shape.hidden > _POCKET_HIDDEN or checkpoint.architecture is not CONCAT.architecture:
        raise CheckpointError(
            f"{checkpoint.source} is not a pocket network, so it cannot use the pocket VAE. Set --vae to the VAE of "
            f"{checkpoint.architecture.title}: the vae folder of its diffusers release, or a TAEHV file for "
            f"HunyuanVideo."
        )
    return POCKET_VAE


def _tags(checkpoint: Checkpoint, settings: SampleSettings) -> dict[str, str]:
    recipe = checkpoint.recipe.to_metadata() if checkpoint.recipe is not None else {}
    recipe.pop("format", None)  # the marker of safetensors files
    return recipe | {SAMPLING_TAG: json.dumps({"file": checkpoint.source, **asdict(settings)})}

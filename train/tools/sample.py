"""Sample a video from a still image and a model file, without ComfyUI.

A *recipe* is the sampling settings that a model file stores: steps, shift, sampler and the video's size.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from magicdistill_core.captions import find_caption
from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError, VideoError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.flow import (
    SamplerCallback,
    few_step_sigmas,
)
from magicdistill_core.geometry import check_geometry, latent_frames, unit_to_frames
from magicdistill_core.media.video import crop_note, read_image, resize_crop
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.null_prompt import load_null_prompt, prompt_file_template
from magicdistill_core.pocket.files import VAE as POCKET_VAE
from magicdistill_core.prompt_templates import TITLES, needs_image
from magicdistill_core.recipe import Recipe, Sampler
from magicdistill_core.writable import check_output_file

from ..data.start_images import StartImageEncoder, load_start_images
from ..data.vae import Vae, load_vae
from ..networks.compiling import compile_blocks
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
        image_in_noise: share of the start image's latent in the starting noise.
        dropped_frames: first decoded frames that are left out of the file.
    """

    seed: int
    steps: int
    shift: float
    sampler: Sampler
    width: int
    height: int
    frames: int
    fps: float
    image_in_noise: float
    dropped_frames: int


def resolve_settings(
    recipe: Recipe | None,
    source: str,
    seed: int = 0,
    steps: int | None = None,
    shift: float | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    image_in_noise: float | None = None,
    dropped_frames: int | None = None,
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
        image_in_noise: share of the start image in the starting noise; None takes the recipe's value.
        dropped_frames: first decoded frames to leave out; None takes the recipe's value.

    Returns:
        The settings. Without a recipe the sampler is `euler`, the frame rate 24, and the last two settings are 0.

    Raises:
        CheckpointError: if there is no recipe and a setting is None.
        VideoError: if width, height or frames are not possible for the latents, or no frame is left.
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
    edges = {"image_in_noise": image_in_noise, "dropped_frames": dropped_frames}
    values |= {name: value if value is not None else getattr(recipe, name, 0) for name, value in edges.items()}
    settings = SampleSettings(seed=seed, sampler=sampler, fps=fps, **values)  # type: ignore[arg-type]
    check_geometry(settings.frames, settings.height, settings.width)
    if settings.dropped_frames >= settings.frames:
        raise VideoError(
            f"Of {settings.frames} frames, {settings.dropped_frames} are to be dropped, which leaves none. Set frames "
            f"to a larger number, or drop fewer frames."
        )
    return settings


def usual_precision(device: torch.device | str) -> Precision:
    """Return the default precision of a device: fp32 on a CPU, where bf16 is slow, else bf16."""
    return "fp32" if torch.device(device).type == "cpu" else "bf16"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its VAE, ready to sample videos from pictures.

    Attributes:
        checkpoint: the model file's contents.
        settings: all settings but the picture and the text.
        network: the network, on its device.
        vae: the VAE, on the same device.
        images: the encoder of start images.
    """

    checkpoint: Checkpoint
    settings: SampleSettings
    network: torch.nn.Module
    vae: Vae
    images: StartImageEncoder

    def latents(
        self,
        known: Tensor,
        text: NullPrompt,
        seed: int,
        callback: SamplerCallback | None = None,
        anchor: Tensor | None = None,
    ) -> Tensor:
        """Sample the latents of one video.

        Args:
            known: the start image in the video's size, `[1, H, W, 3]` in [0, 1]; or, for a model that takes them, the
                4n + 1 first frames of the video.
            text: the text conditioning.
            seed: seed of the starting noise.
            callback: called after each model call, as in `magicdistill_core.flow`; None for no callback.
            anchor: the portrait for the CLIP features, if it is another picture than the first known frame.

        Returns:
            `[1, 16, T, H / 8, W / 8]` in float32, on the network's device.
        """
        settings, recipe = self.settings, self.checkpoint.recipe
        device = next(self.network.parameters()).device
        frames = rearrange(known, "t h w c -> 1 t c h w").to(device)
        start = self.images.encode(
            frames[:, 0],
            settings.frames,
            frames[:, 1:] if len(known) > 1 else None,
            None if anchor is None else rearrange(anchor, "h w c -> 1 c h w").to(device),
        )
        return generate(
            self.network,
            text,
            start,
            latent_frames(settings.frames),
            few_step_sigmas(settings.steps, settings.shift),
            settings.sampler,
            seed,
            callback,
            recipe.embedded_guidance if recipe is not None else None,
            settings.image_in_noise,
        )

    def fitted(self, picture: Tensor) -> Tensor:
        """Return a picture `[H, W, 3]` in uint8 in the video's size, in [0, 1], and say what is cropped."""
        settings = self.settings
        if note := crop_note(picture.shape[0], picture.shape[1], settings.height, settings.width):
            logger.warning(note)
        # Resized in floating point without rounding, as the nodes do with a loaded image.
        return resize_crop(picture.float() / 255, settings.height, settings.width)


def load_model(
    file: Path,
    *,
    base: Path | None = None,
    vae: Path | None = None,
    image_encoder: Path | None = None,
    i2v_mode: str | None = None,
    precision: Precision | None = None,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    **settings: Any,
) -> LoadedModel:
    """Load a model file with its VAE.

    Args:
        file: a teacher or generator (single file or diffusers folder), or a generator LoRA.
        base: for a LoRA, the model file or diffusers folder on which it was trained; None for a complete model.
        vae: VAE for `load_vae`; None means the pocket VAE, which works with pocket networks only.
        image_encoder: folder of the CLIP image encoder, for families that use its features; None for the others.
        i2v_mode: how the network receives the start image (`concat` or `token_replace`), for a file that does not
            determine it; else None.
        precision: precision of the network's computations; None means fp32 on a CPU and bf16 elsewhere.
        device: device of the network, the VAE and the image encoder.
        compiled: whether to compile the network's blocks, at their first call.
        settings: as for `resolve_settings`; a missing one takes the recipe's value.

    Raises:
        MagicDistillError: if a file is unusable, or a setting is missing or invalid.
    """
    checkpoint = load_weights(file, base, i2v_mode)
    resolved = resolve_settings(checkpoint.recipe, checkpoint.source, **settings)
    decoder = load_vae(_vae_path(vae, checkpoint), device)
    if decoder.architecture != checkpoint.architecture.name:
        raise CheckpointError(
            f"{checkpoint.source} is a {checkpoint.architecture.title} network, but {vae} makes latents of "
            f"{decoder.architecture}. Set --vae to the VAE of the network's release."
        )
    encoder = load_start_images(decoder, image_encoder, device)
    network = load_network(checkpoint, DTYPES[precision or usual_precision(device)], device)
    if compiled:
        compile_blocks(network)
    return LoadedModel(checkpoint, resolved, network, decoder, encoder)


def sample_file(
    file: Path,
    image: Path,
    out: Path,
    *,
    prompt: Path | None = None,
    caption: str | None = None,
    callback: SamplerCallback | None = None,
    **options: Any,
) -> SampleSettings:
    """Sample a video from a still image and write it as an mp4 with recipe and settings in its tags.

    Args:
        file: a teacher or generator (single file or diffusers folder), or a generator LoRA.
        image: the start image. It is cropped to the aspect ratio and resized; tall images keep more of their top.
        out: path of the mp4.
        prompt: a file of `magicdistill encode-prompt` that replaces the null prompt of `file`; None keeps that one.
        caption: one of the captions that the file carries; None samples with its null prompt.
        callback: called after each model call, as in `magicdistill_core.flow`; None for no callback.
        options: as for `load_model`.

    Returns:
        The settings used.

    Raises:
        MagicDistillError: if a file is unusable, a setting is missing or invalid, or `out` cannot be written.
    """
    check_video_file(out)
    picture = read_image(image)
    model = load_model(file, **options)
    text = text_of(model.checkpoint, prompt, caption)
    settings = model.settings
    latents = model.latents(model.fitted(picture)[None], text, settings.seed, callback)
    video = unit_to_frames(model.vae.decode(latents)[:, settings.dropped_frames :].cpu())
    write_video(out, video, settings.fps, video_tags(model.checkpoint, settings, caption))
    return settings


def check_video_file(out: Path) -> None:
    """Refuse a video file that has no name of an mp4 file or cannot be written.

    Raises:
        MagicDistillError: if so.
    """
    if out.suffix.lower() != ".mp4":
        raise VideoError(f"The video's file name is {out.name}. Expected a name that ends in .mp4.")
    check_output_file(out)


def text_of(checkpoint: Checkpoint, prompt: Path | None, caption: str | None) -> NullPrompt:
    """Return the text conditioning: a prompt's file, a caption of the model file, or its null prompt.

    A warning tells if the model was trained with prompts that were encoded in another way.

    Args:
        checkpoint: the model file's contents.
        prompt: a file of `magicdistill encode-prompt`; None for no such file.
        caption: a caption that the model file carries; None for no caption.

    Raises:
        MagicDistillError: if both are given, or a file is unusable, or there is no such caption.
    """
    if prompt is not None and caption is not None:
        raise ConfigError("--prompt and --caption are two texts for one video. Use only one of these options.")
    if caption is not None:
        return find_caption(checkpoint.captions, caption, checkpoint.source)
    wanted = None if checkpoint.recipe is None else checkpoint.recipe.prompt_template
    if prompt is None:
        if wanted is not None and needs_image(wanted):
            logger.warning(
                "%s was trained with the start image in its prompts (%s), and its null prompt does not show this "
                "image. Encode a prompt with `magicdistill encode-prompt --image`, and name its file by --prompt",
                checkpoint.source,
                TITLES[wanted],
            )
        return null_prompt_of(checkpoint)
    found = prompt_file_template(prompt)
    if wanted is not None and found is not None and found != wanted:
        logger.warning(
            "%s was encoded for %s, but %s was trained with the prompts of %s. Encode it with --template %s",
            prompt.name,
            TITLES[found],
            checkpoint.source,
            TITLES[wanted],
            wanted,
        )
    return null_prompt_of(replace(checkpoint, null_prompt=load_null_prompt(prompt, checkpoint.architecture.name)))


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


def video_tags(checkpoint: Checkpoint, settings: SampleSettings, caption: str | None) -> dict[str, str]:
    """Return the tags of a video file: the recipe of its model, and its own settings.

    Args:
        checkpoint: the model file's contents.
        settings: the settings.
        caption: its caption; None if it has none.
    """
    recipe = checkpoint.recipe.to_metadata() if checkpoint.recipe is not None else {}
    recipe.pop("format", None)  # the marker of safetensors files
    sampling = {"file": checkpoint.source, **asdict(settings)} | ({} if caption is None else {"caption": caption})
    return recipe | {SAMPLING_TAG: json.dumps(sampling)}

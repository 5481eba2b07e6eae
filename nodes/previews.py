"""Animated previews: after every step, show the model's current estimate of the video as one animated picture.

ComfyUI's own previews show only the first latent frame, which is the start image from the first step on.
"""

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.taesd.taehv import TAEHV
from PIL import Image, ImageOps
from torch import Tensor

from ..magicdistill_core.families.hunyuan_video import HEAD_DIM
from ..magicdistill_core.geometry import SPACE_STRIDE, TIME_STRIDE
from ..magicdistill_core.pocket import files
from ..magicdistill_core.sizes import USUAL_SIZES
from .attachments import attached_to, known_family
from .reporting import LOGGER

Callback = Callable[[int, Tensor, Tensor, int], None]
_MAX_FRAMES = 33
_QUALITY = 80
_FORMAT = "WEBP"


class AnimatedPreview(Image.Image):
    """Frames of one size as a PIL image: it looks like its first frame, and `save` writes all frames.

    ComfyUI sends a preview by saving a PIL image. Browsers recognise the content, so the saved animation plays in the
    node.

    Args:
        frames: the frames, at least one.
        milliseconds: how long each frame is shown.
    """

    def __init__(self, frames: list[Image.Image], milliseconds: int) -> None:
        super().__init__()
        self.__dict__.update(frames[0].__dict__)
        self._frames = frames
        self._milliseconds = milliseconds

    def save(self, fp: Any, format: str | None = None, **_: object) -> None:
        """Write all frames as a looping WebP animation.

        Args:
            fp: a file's path, or an open file.
            format: ignored, like all other options: they are for still pictures.
        """
        self._frames[0].save(
            fp,
            format=_FORMAT,
            save_all=True,
            append_images=self._frames[1:],
            duration=self._milliseconds,
            loop=0,
            quality=_QUALITY,
            method=0,
        )


def prepare_callback(model: ModelPatcher, steps: int, done: int = 0, total: int | None = None) -> Callback:
    """Return a sampling callback that moves the progress bar and, if previews are on, sends an animation.

    Args:
        model: the MODEL that is sampled.
        steps: number of sampling steps.
        done: steps of the node before this sampling.
        total: steps of the node in all; None if it samples once.
    """
    frames_of = _frame_maker(model)
    all_steps = steps if total is None else total
    progress = comfy.utils.ProgressBar(all_steps)
    fps = _frame_rate(model)

    def callback(step: int, x0: Tensor, x: Tensor, _: int) -> None:
        preview = None
        if frames_of is not None:
            try:
                preview = (_FORMAT, _animation(*frames_of(x0), fps), None)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                LOGGER.warning("No preview of step %d: not enough memory next to the model.", step + 1)
        progress.update_absolute(done + step + 1, all_steps, preview)

    return callback


def _animation(frames: list[Image.Image], share: int, fps: float) -> AnimatedPreview:
    """Return at most `_MAX_FRAMES` of these pictures as a loop; each picture represents `share` frames of a video."""
    stride = -(-len(frames) // _MAX_FRAMES)
    shown = frames[::stride]
    # Begin the loop in its middle: a page that shows only the first picture then does not show the start image.
    middle = len(shown) // 2
    return AnimatedPreview(shown[middle:] + shown[:middle], round(1000 * stride * share / fps))


def _frame_rate(model: ModelPatcher) -> float:
    attached, family = attached_to(model), known_family(model)
    if attached is not None and attached.recipe is not None:
        return attached.recipe.fps
    return USUAL_SIZES[family.architecture.name if family is not None else "hunyuan_video"].fps


def _frame_maker(model: ModelPatcher) -> Callable[[Tensor], tuple[list[Image.Image], int]] | None:
    """Return a function from latents to pictures and the number of frames per picture; None if previews are off."""
    method = args.preview_method
    if method is LatentPreviewMethod.NoPreviews:
        return None
    network = _tiny_vae(model) if method is not LatentPreviewMethod.Latent2RGB else None
    if network is not None:
        # A VAE expects the scale of a LATENT, not the network's.
        return lambda x0: (_decoded(network, model.model.process_latent_out(x0[:1].float())), 1)
    colours = _colours(model)
    if colours is None:
        return None
    return lambda x0: ([_one_frame(colours, frame) for frame in x0[:1].split(1, dim=2)], TIME_STRIDE)


def _colours(model: ModelPatcher) -> latent_preview.Latent2RGBPreviewer | None:
    """Return ComfyUI's previewer that shows latents in the colours of their format; None if the format has none.

    `latent_preview.get_previewer` would return another one where a pack has replaced it. VideoHelperSuite does, and its
    previewer returns tensors instead of pictures.
    """
    latents = model.model.latent_format
    if latents.latent_rgb_factors is None:
        return None
    return latent_preview.Latent2RGBPreviewer(
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    )


def _one_frame(previewer: latent_preview.LatentPreviewer, latent_BC1HW: Tensor) -> Image.Image:
    picture = previewer.decode_latent_to_preview(latent_BC1HW)
    # Each pixel here is one latent pixel, so half of the video's size shows all the detail.
    side = min(args.preview_size, max(picture.size) * SPACE_STRIDE // 2)
    return ImageOps.contain(picture, (side, side), Image.Resampling.BILINEAR)


def _decoded(network: TAEHV, latents_BCTHW: Tensor) -> list[Image.Image]:
    """Decode all frames. Latents are first pooled to the preview's size, because this runs at every step."""
    weights = next(network.parameters())
    pool = -(-max(latents_BCTHW.shape[-2:]) * SPACE_STRIDE // args.preview_size)
    if pool > 1:
        latents_BCTHW = F.avg_pool3d(latents_BCTHW, (1, pool, pool))
    frames_TCHW = network.decode(latents_BCTHW.to(weights))[0].movedim(0, 1)
    levels = (frames_TCHW.clamp(0, 1) * 255).to(torch.uint8).movedim(1, -1).cpu()
    return [Image.fromarray(frame.numpy()) for frame in levels]


def _tiny_vae(model: ModelPatcher) -> TAEHV | None:
    """Return the tiny video VAE (TAEHV) for the model's latents, from models/vae_approx or the pocket model's own.

    Its few megabytes are moved to the model's device directly. `VAE.decode` would request memory from ComfyUI, and
    ComfyUI might unload the model that is being sampled.
    """
    if model.model.model_config.unet_config.get("hidden_size") == HEAD_DIM:
        path: str | None = str(files.VAE)
    else:
        wanted = model.model.latent_format.taesd_decoder_name
        names = folder_paths.get_filename_list("vae_approx") if wanted else []
        name = next((name for name in names if name.startswith(wanted)), None)
        path = folder_paths.get_full_path("vae_approx", name) if name else None
    if path is None:
        return None
    vae = VAE(comfy.utils.load_torch_file(path))
    return (
        vae.first_stage_model.to(model.load_device, vae.vae_dtype) if isinstance(vae.first_stage_model, TAEHV) else None
    )

"""What a release does at the edges of a video: a little of the start image in the noise, and first frames left out.

The recipe of a model file asks for it. The trainer's samples do the same.
"""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..magicdistill_core.flow import with_image
from ..magicdistill_core.recipe import Recipe
from .attachments import attached_to, known_family


def with_start_image(model: ModelPatcher, conditioning: list[list], samples: Tensor, noise: Tensor) -> Tensor:
    """Return the starting noise with the recipe's share of the start image; the noise itself if it is 0.

    Args:
        model: the MODEL.
        conditioning: its CONDITIONING, which holds the start image unless the latent does.
        samples: the LATENT's samples `[B, 16, T, H, W]`.
        noise: the noise, shaped as `samples`, in the network's scale.
    """
    recipe, family = _recipe(model), known_family(model)
    if recipe is None or not recipe.image_in_noise or family is None or not family.takes_image:
        return noise
    image = samples if family.kept_frames else conditioning[0][1]["concat_latent_image"]
    # ComfyUI's latents are the VAE's; the noise is added in the network's scale.
    return with_image(noise, model.model.process_latent_in(image[:, :, :1].float()), recipe.image_in_noise)


def dropped_frames(model: ModelPatcher) -> int:
    """Return how many decoded frames at the beginning are no part of the MODEL's videos."""
    recipe = _recipe(model)
    return 0 if recipe is None else recipe.dropped_frames


def dropped_note(model: ModelPatcher) -> list[str]:
    """Return a note about frames to drop after decoding; none if there are none."""
    frames = dropped_frames(model)
    if not frames:
        return []
    return [
        f"the first {frames} decoded frames are no part of this model's videos. Save portrait video drops them if "
        f"record is connected; elsewhere use Get Image from Batch with batch_index {frames} and length "
        f"4096."
    ]


def edge_notes(model: ModelPatcher) -> list[str]:
    """Return notes about both edges for a sampler of another pack or of ComfyUI, which knows neither.

    Args:
        model: the MODEL.
    """
    recipe, notes = _recipe(model), dropped_note(model)
    if recipe is None or not recipe.image_in_noise:
        return notes
    share = f"{recipe.image_in_noise:g}"
    return [
        f"the model's videos start from noise with a share of {share} of the start image. Few-step flow sampler adds "
        f"it, SamplerCustomAdvanced does not.",
        *notes,
    ]


def _recipe(model: ModelPatcher) -> Recipe | None:
    attached = attached_to(model)
    return None if attached is None else attached.recipe

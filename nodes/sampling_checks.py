"""Checks before sampling a few-step model: the start image, and the input of the guidance embedding."""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from .attachments import attached_to, known_family


def check_start_image(model: ModelPatcher, conditioning: list[list], latent: dict, samples: Tensor) -> None:
    """Check that the start image is present and fits the latent.

    ComfyUI would silently replace a missing image by zeros and rescale one of a wrong size.

    Args:
        model: the MODEL; one of an unknown family is not checked.
        conditioning: the CONDITIONING for the sampler.
        latent: the LATENT for the sampler.
        samples: its samples `[B, 16, T, H, W]`.

    Raises:
        VideoError: if an image-to-video model gets no start image, or one of another size than the latent.
    """
    family = known_family(model)
    if family is None or not family.takes_image:
        return
    if family.kept_frames:
        if latent.get("noise_mask") is None or any("guiding_frame_index" not in values for _, values in conditioning):
            raise VideoError(
                "This model keeps the start image in the latent's first frame, but CONDITIONING or LATENT contain no "
                "start image. Connect both outputs of Portrait to video."
            )
        return
    # Wan's encoded image covers all latent frames; that of the other families covers one.
    sides = slice(-3, None) if family.image_covers_video else slice(-2, None)
    for _, values in conditioning:
        image = values.get("concat_latent_image")
        if image is None:
            raise VideoError(
                "The conditioning carries no start image, which this image-to-video model needs. Connect the "
                "CONDITIONING of Portrait to video."
            )
        if image.shape[sides] != samples.shape[sides]:
            raise VideoError(
                f"The start image was encoded to {list(image.shape[sides])} latent pixels, but the latent has "
                f"{list(samples.shape[sides])}. Connect CONDITIONING and LATENT of the same Portrait to video node."
            )
        mask = values.get("concat_mask")
        if mask is not None and mask.shape[-3:] != samples.shape[-3:]:
            raise VideoError(
                f"The conditioning was made for {list(mask.shape[-3:])} latent frames, rows and columns, but the "
                f"latent has {list(samples.shape[-3:])}. Connect CONDITIONING and LATENT of the same Portrait to video "
                f"node."
            )


def embedded_guidance(model: ModelPatcher, conditioning: list[list]) -> tuple[float | None, list[str]]:
    """Return the input of the network's guidance embedding, and notes if it differs from the recipe.

    Args:
        model: the MODEL.
        conditioning: the CONDITIONING, which may set the guidance.

    Returns:
        The guidance; None for networks without such an embedding, which ignore the guidance in a conditioning, and if
        the conditioning sets none. If it sets several, the smallest.
    """
    if not model.model.model_config.unet_config.get("guidance_embed"):
        return None, []
    found = {float(values["guidance"]) for _, values in conditioning if values.get("guidance") is not None}
    attached = attached_to(model)
    wanted = attached.recipe.embedded_guidance if attached is not None and attached.recipe is not None else None
    notes = [
        f"guidance is {value:g}, but the model was made for {wanted:g}."
        for value in sorted(found)
        if wanted is not None and value != wanted
    ]
    return min(found, default=None), notes

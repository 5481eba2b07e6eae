"""Sample a latent with the schedule of a few-step model, on ComfyUI's native sampling path."""

import comfy.model_management
import comfy.sample
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise

from ..magicdistill_core.flow import few_step_sigmas
from .native_sampler import few_step_sampler
from .previews import Callback
from .prompt_conditioning import Conditioning
from .release_edges import with_start_image
from .sampling_checks import check_start_image
from .sampling_settings import Settings


def sample_latent(
    model: ModelPatcher, conditioning: Conditioning, latent: dict, seed: int, settings: Settings, callback: Callback
) -> dict:
    """Sample a LATENT.

    Args:
        model: the MODEL.
        conditioning: its CONDITIONING, with the start image.
        latent: the LATENT to begin with; it determines the size and the number of videos.
        seed: the seed of the starting noise.
        settings: steps, shift and sampler.
        callback: called after every step, from `prepare_callback`.

    Returns:
        The LATENT with the samples.

    Raises:
        VideoError: if the start image is missing, or has another size than the latent.
    """
    # The noise takes the number type of the latent. In half precision it would not be the noise of the seed.
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"]).float()
    check_start_image(model, conditioning, latent, samples)
    mask = latent.get("noise_mask")
    guider = Guider_Basic(model)
    guider.set_conds(conditioning)
    noise = Noise_RandomNoise(seed).generate_noise(latent | {"samples": samples})
    samples = guider.sample(
        with_start_image(model, conditioning, samples, noise),
        samples,
        few_step_sampler(settings.sampler),
        few_step_sigmas(settings.steps, settings.shift),
        denoise_mask=mask if mask is None else mask.float(),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    device, dtype = comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    return latent | {"samples": samples.to(device, dtype)}

"""Make single segments of a long video with a MODEL and a VAE of ComfyUI."""

from collections.abc import Sequence

import comfy.model_management
import node_helpers
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ..magicdistill_core.families.base import Family
from ..magicdistill_core.geometry import TIME_STRIDE
from ..magicdistill_core.sizes import VideoSize
from .previews import prepare_callback
from .prompt_conditioning import Conditioning
from .sample_latent import sample_latent
from .sampling_settings import Settings
from .start_image import encode_start

# The entries of a CONDITIONING that belong to its text.
_OF_TEXT = ("pooled_output", "attention_mask")


class Segments:
    """Samples and decodes segments: the `SegmentModel` of ComfyUI."""

    def __init__(
        self,
        model: ModelPatcher,
        vae: VAE,
        family: Family,
        size: VideoSize,
        conditioning: Conditioning,
        prompts: Sequence[Conditioning],
        settings: Settings,
        segments: int,
    ) -> None:
        """Prepare the segments of one video.

        Args:
            model: the MODEL.
            vae: the VAE that belongs to it.
            family: its family.
            size: width, height and frames of a segment.
            conditioning: the CONDITIONING of Portrait to video.
            prompts: the text of each segment; empty for the text of `conditioning`.
            settings: steps, shift and sampler.
            segments: number of segments of the video.
        """
        self._model, self._vae, self._family, self._size = model, vae, family, size
        self._conditioning, self._prompts = conditioning, prompts
        self._settings, self._segments = settings, segments

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        """Sample the latents of a segment, with its preview and the progress of the complete video."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        known = 1
        if self._family.image_covers_video:
            # All shared frames of the form 4n + 1 are known.
            known = (len(start) - 1) // TIME_STRIDE * TIME_STRIDE + 1
        base = self._conditioning[0][1]
        # CLIP features stay those of the portrait.
        features = base.get("clip_vision_output")
        image = encode_start(self._family, self._vae, start[:known], self._size, 1, features)
        text = self._conditioning
        if self._prompts:
            # Everything but the text stays, such as the guidance and the LoRAs of LoRA strength per step.
            shared = {name: value for name, value in base.items() if name not in _OF_TEXT}
            text = [[states, {**shared, **values}] for states, values in self._prompts[number]]
        conditioning = node_helpers.conditioning_set_values(text, image.values)
        steps = self._settings.steps
        callback = prepare_callback(self._model, steps, number * steps, self._segments * steps)
        made = sample_latent(self._model, conditioning, image.latent, seed, self._settings, callback)
        return made["samples"]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the latents of a segment to frames on the CPU."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        frames = self._vae.decode(latents)
        return frames.reshape(-1, *frames.shape[-3:])[..., :3].float().cpu()

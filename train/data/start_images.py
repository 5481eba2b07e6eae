"""Start images in the form that each family expects.

HunyuanVideo encodes the image alone. Wan 2.1 encodes it together with gray frames that follow it, and also uses CLIP
features of the image.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.families import all_families
from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.families.wan import FEATURE_SHAPE
from magicdistill_core.geometry import latent_frames

from .clip_pixels import clip_pixels
from .vae import Vae

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

# Gray frames replace the frames that will be generated.
_GRAY = 0.5


class ClipVision:
    """The vision tower of CLIP ViT-H. Its features are the second-to-last hidden layer: class token and patches."""

    def __init__(self, model: "CLIPVisionModel") -> None:
        """Freeze the vision tower `model`, which is on its device already."""
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Compute the features `[B, 257, 1280]` of images, in float32.

        The complete picture is resized to CLIP's square, without cropping. Wan 2.1's release does the same, and so does
        ComfyUI's CLIP Vision Encode with crop "none".

        Args:
            images: `[B, 3, H, W]` in [0, 1], on the device of the vision tower.
        """
        pixels = clip_pixels(images, self._model.config.image_size, middle=False)
        hidden = self._model(pixels.to(self._model.dtype), output_hidden_states=True).hidden_states
        return hidden[-2].float()


class StartImageEncoder:
    """An encoder of start images for the family that a VAE belongs to."""

    def __init__(self, vae: Vae, clip: ClipVision | None) -> None:
        """Combine a VAE with CLIP's vision tower.

        Args:
            vae: the VAE of the family.
            clip: the vision tower; None for a family that uses no CLIP features.
        """
        self.vae = vae
        self._clip = clip
        self._covers_video = _family_of(vae).image_covers_video

    @property
    def takes_history(self) -> bool:
        """Whether a video may begin with several known frames, and not only with an image."""
        return self._covers_video

    @torch.no_grad()
    def encode(
        self, images: Tensor, frames: int, history: Tensor | None = None, anchor: Tensor | None = None
    ) -> StartImage:
        """Encode start images.

        Args:
            images: `[B, 3, H, W]` in [0, 1] on the VAE's device.
            frames: number of frames of the videos, 4n + 1; used by families that encode the image together with gray
                frames.
            history: known frames that follow the images, `[B, 4n, 3, H, W]`; None for none. Only for families that take
                them (`takes_history`).
            anchor: images of the same persons `[B, 3, H, W]` for the CLIP features; None takes `images`.
        """
        features = None if self._clip is None else self._clip.features(images if anchor is None else anchor)
        if not self._covers_video:
            assert history is None
            return StartImage(self.vae.encode_image(images), features)
        known = images[:, None] if history is None else torch.cat([images[:, None], history], dim=1)
        gray = torch.full_like(images, _GRAY)[:, None].expand(-1, frames - known.shape[1], -1, -1, -1)
        latents = self.vae.encode(torch.cat([known, gray], dim=1))
        return StartImage(latents, features, latent_frames(known.shape[1]))


def load_start_images(vae: Vae, image_encoder: Path | None, device: torch.device | str = "cpu") -> StartImageEncoder:
    """Return the encoder of start images that fits a VAE.

    Args:
        vae: the VAE, from `load_vae`.
        image_encoder: a transformers `CLIPVisionModel` folder, for a family that uses CLIP features; None for the
            others.
        device: device of the image encoder, which must be the VAE's.

    Raises:
        CheckpointError: if the family needs an image encoder and none is given, if it needs none and one is given, or
            if the image encoder is unusable.
    """
    family = _family_of(vae)
    if family.feature_shape is None:
        if image_encoder is not None:
            raise CheckpointError(
                f"{family.architecture.title} uses no CLIP features, so the image encoder {image_encoder} is not "
                f"needed. Leave it out."
            )
        return StartImageEncoder(vae, None)
    if image_encoder is None:
        raise CheckpointError(
            f"{family.architecture.title} uses CLIP features of the start image, but no image encoder was named. "
            f"Name the image_encoder folder of its diffusers release (--image-encoder)."
        )
    return StartImageEncoder(vae, _load_clip(image_encoder, torch.device(device)))


def _family_of(vae: Vae) -> Family:
    return next(f for f in all_families() if f.architecture.name == vae.architecture and f.takes_image)


def _load_clip(folder: Path, device: torch.device) -> ClipVision:
    # Imported here because it takes seconds, and most families do not need it.
    from transformers import CLIPVisionModel

    advice = "Expected the image_encoder folder of a diffusers Wan 2.1 I2V model (CLIP ViT-H's vision tower)."
    try:
        model = CLIPVisionModel.from_pretrained(
            folder,
            dtype=torch.float32 if device.type == "cpu" else torch.float16,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:
        raise CheckpointError(f"The image encoder in {folder} cannot be loaded ({cause(error)}). {advice}") from error
    config: Any = model.config
    found = ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
    if found != FEATURE_SHAPE:
        raise CheckpointError(
            f"The image encoder in {folder} has features of (tokens, width) {found}, expected {FEATURE_SHAPE}. {advice}"
        )
    return ClipVision(model.to(device))  # type: ignore[arg-type]

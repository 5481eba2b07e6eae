"""HunyuanVideo: the scale of its latents, its image-to-video modes, and the sizes read from its weights.

Magic 1-For-1's teachers use this family's concat mode. Their network is the same; only their file differs (see
`wrappers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..geometry import LATENT_CHANNELS, PATCH
from ..layouts.hunyuan_video import HUNYUAN_VIDEO
from .base import Architecture, Family, StartImage

# cat[noisy latent, image latent, mask] (Magic 1-For-1, Sec. 3; HunyuanVideo-I2V "concat").
CONCAT_CHANNELS = 2 * LATENT_CHANNELS + 1
# The network's latents are the VAE's raw latents times this factor. ComfyUI's LATENT holds raw latents.
LATENT_SCALE = 0.476986
HEAD_DIM = 128
ROPE_AXES = (16, 56, 56)
ROPE_THETA = 256.0
# Default guidance scale for a network with a guidance embedding (also the default of the releases and of ComfyUI).
EMBEDDED_GUIDANCE = 6.0


@dataclass(frozen=True)
class NetworkShape:
    """The sizes of a HunyuanVideo transformer, read from its weights.

    Attributes:
        in_channels: input channels of the patch embedding: 16, or 33 for concat.
        hidden: hidden size, the width of the tokens.
        double_blocks: number of blocks with separate weights for video and text.
        single_blocks: number of blocks with common weights.
        refiner_blocks: number of blocks that process the text first.
        text_dim: width of the text states.
        pooled_dim: width of the pooled text.
        guidance_embed: whether the guidance scale is an input of the network.
    """

    in_channels: int
    hidden: int
    double_blocks: int
    single_blocks: int
    refiner_blocks: int
    text_dim: int
    pooled_dim: int
    guidance_embed: bool

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.hidden // HEAD_DIM

    def facts(self) -> dict[str, str]:
        """Return the sizes as text for people, by label."""
        return {
            "width": f"{self.hidden} ({self.heads} x {HEAD_DIM})",
            "blocks": f"{self.double_blocks} double + {self.single_blocks} single, {self.refiner_blocks} text refiner",
            "text": f"{self.text_dim} wide, pooled {self.pooled_dim}",
            "guidance embedding": "yes" if self.guidance_embed else "no",
        }


def concat_condition(image_latent_BC1HW: Tensor, latent_frames: int) -> Tensor:
    """Return the 17 channels that follow the noisy latent: image latent, then mask (Magic 1-For-1, Sec. 3).

    The image is encoded as one frame and padded with zeros along time in latent space. The mask is 1 on latent frame 0
    and 0 on the others.

    Args:
        image_latent_BC1HW: `[B, 16, 1, H, W]` in the network's scale.
        latent_frames: number of latent frames of the video.

    Returns:
        `[B, 17, latent_frames, H, W]`.
    """
    batch, _, _, height, width = image_latent_BC1HW.shape
    image = image_latent_BC1HW.new_zeros(batch, LATENT_CHANNELS, latent_frames, height, width)
    image[:, :, :1] = image_latent_BC1HW
    mask = image_latent_BC1HW.new_zeros(batch, 1, latent_frames, height, width)
    mask[:, :, :1] = 1
    return torch.cat([image, mask], dim=1)


def network_shape(state: Mapping[str, Tensor]) -> NetworkShape:
    """Read the sizes from the weights.

    Args:
        state: the weights in the file layout with Tencent's names.

    Raises:
        CheckpointError: if the weights are not those of a HunyuanVideo transformer.
    """

    def blocks(stem: str) -> int:
        return len({key[len(stem) :].split(".")[0] for key in state if key.startswith(stem)})

    if "img_in.proj.weight" not in state or "txt_in.input_embedder.weight" not in state:
        some = ", ".join(sorted(state)[:4]) or "nothing"
        raise CheckpointError(
            f"These are not the weights of a HunyuanVideo transformer: img_in.proj or txt_in.input_embedder is "
            f"missing, found {some}. Load a HunyuanVideo-I2V model with Tencent's, ComfyUI's or diffusers' names."
        )
    patch_embed = state["img_in.proj.weight"]
    hidden = patch_embed.shape[0]
    if patch_embed.ndim != 5 or tuple(patch_embed.shape[2:]) != (1, PATCH, PATCH) or hidden % HEAD_DIM:
        raise CheckpointError(
            f"img_in.proj.weight has shape {list(patch_embed.shape)}, expected [heads * 128, channels, 1, 2, 2]. "
            f"This is not a HunyuanVideo transformer of the first generation. Choose a HunyuanVideo-I2V model file."
        )
    vector_in = state.get("vector_in.in_layer.weight")
    if vector_in is None:
        raise CheckpointError(
            "vector_in is missing: this looks like HunyuanVideo 1.5 or another related model. Expected a "
            "HunyuanVideo-I2V model of the first generation (with pooled text in vector_in). Choose such a file."
        )
    return NetworkShape(
        in_channels=patch_embed.shape[1],
        hidden=hidden,
        double_blocks=blocks("double_blocks."),
        single_blocks=blocks("single_blocks."),
        refiner_blocks=blocks("txt_in.individual_token_refiner.blocks."),
        text_dim=state["txt_in.input_embedder.weight"].shape[1],
        pooled_dim=vector_in.shape[1],
        guidance_embed="guidance_in.mlp.0.weight" in state,
    )


def _concat(image: StartImage, latent_frames: int) -> Tensor:
    return concat_condition(image.latents, latent_frames)


def _start_frame(image: StartImage, latent_frames: int) -> Tensor:
    """Return the clean latent `[B, 16, 1, H, W]` of frame 0, which the network modulates as at noise level 0."""
    return image.latents


def _no_image(image: StartImage, latent_frames: int) -> Tensor:
    raise CheckpointError(
        "A text-to-video network takes no start image. First widen it to image-to-video: train with method sft and "
        "method.widen=true."
    )


ARCHITECTURE = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    layout=HUNYUAN_VIDEO,
    file_mark="img_in.proj.weight",
    diffusers_mark="x_embedder.proj.weight",
    file_spelling="Tencent",
    shape=network_shape,
    # HunyuanVideo-I2V concat: 288 tokens of the start image, then at most 256 of the text.
    prompt_tokens=288 + 256,
)
CONCAT = Family(
    ARCHITECTURE,
    i2v_mode="concat",
    title="image-to-video by concatenation (noise 16 + image 16 + mask 1)",
    in_channels=CONCAT_CHANNELS,
    condition=_concat,
    diffusers_mode="latent_concat",
)
TOKEN_REPLACE = Family(
    ARCHITECTURE,
    i2v_mode="token_replace",
    title="image-to-video by token replacement (frame 0 is the clean image)",
    in_channels=LATENT_CHANNELS,
    condition=_start_frame,
    kept_frames=1,
    diffusers_mode="token_replace",
)
TEXT_ONLY = Family(
    ARCHITECTURE,
    i2v_mode="none",
    title="text-to-video",
    in_channels=LATENT_CHANNELS,
    condition=_no_image,
    takes_image=False,
)
FAMILIES = (CONCAT, TOKEN_REPLACE, TEXT_ONLY)

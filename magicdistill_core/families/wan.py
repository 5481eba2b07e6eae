"""Wan 2.1 image-to-video: 36 input channels (noise 16 + mask 4 + image 16), and CLIP-vision features of the image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..geometry import LATENT_CHANNELS, PATCH, TIME_STRIDE
from ..layouts.wan import WAN
from .base import Architecture, Family, StartImage

MASK_CHANNELS = TIME_STRIDE  # one for each of the four video frames per latent frame
IMAGE_CHANNELS = 2 * LATENT_CHANNELS + MASK_CHANNELS
HEAD_DIM = 128
TEXT_TOKENS = 512  # prompts are padded with zeros to this length, and the network sees the padding
FEATURE_SHAPE = (257, 1280)  # CLIP ViT-H's second to last hidden layer: a class token and 16 x 16 patches
# The negative prompt that Wan 2.1 publishes as a setting: a list of faults, separated by Chinese commas.
NEGATIVE_TEXT = (
    "色调艳丽 过曝 静态 细节模糊不清 字幕 风格 作品 画作 画面 静止 整体发灰 最差质量 低质量 JPEG压缩残留 丑陋的 残缺的 "
    "多余的手指 画得不好的手部 画得不好的脸部 畸形的 毁容的 形态畸形的肢体 手指融合 静止不动的画面 杂乱的背景 三条腿 "
    "背景人很多 倒着走"
).replace(" ", "\uff0c")
# Mean and std of the VAE's latents per channel. The network sees (latent - mean) / std.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


# Tensors that only other models of the Wan family have, by the beginning of their names in either layout.
_RELATIVES = {
    "img_emb.emb_pos": "Wan 2.1 FLF2V, which makes a video from its first and last frame",
    "condition_embedder.image_embedder.pos_embed": "Wan 2.1 FLF2V, which makes a video from its first and last frame",
    "vace_": "Wan VACE",
    "control_adapter.": "Wan Fun Camera",
    "ref_conv.": "Wan Fun Control",
    "casual_audio_encoder.": "Wan 2.2 S2V (speech to video)",
    "audio_proj.": "a Wan model with an audio input, such as HuMo",
    "face_adapter.": "Wan 2.2 Animate",
    "patch_embedding_": "a Wan model with more than one patch embedding, such as SCAIL",
}
# Networks without CLIP features, by their input channels.
_WITHOUT_FEATURES = {
    LATENT_CHANNELS: "a text-to-video model",
    IMAGE_CHANNELS: "Wan 2.2 image-to-video (A14B)",
    3 * LATENT_CHANNELS: "Wan 2.2 TI2V 5B",
}


@dataclass(frozen=True)
class WanShape:
    """The sizes of a Wan transformer, read from its weights.

    Attributes:
        in_channels: input channels of the patch embedding.
        hidden: hidden size, the width of the tokens.
        mlp: width of the hidden layer of each block's MLP.
        blocks: number of blocks.
        text_dim: width of the text states.
        frequencies: width of the timestep's sinusoidal embedding.
        guidance_embed: False, because Wan has no guidance input.
    """

    in_channels: int
    hidden: int
    mlp: int
    blocks: int
    text_dim: int
    frequencies: int
    guidance_embed: bool = False

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.hidden // HEAD_DIM

    def facts(self) -> dict[str, str]:
        """Return the sizes as text for people, by label."""
        return {
            "width": f"{self.hidden} ({self.heads} x {HEAD_DIM}), mlp {self.mlp}",
            "blocks": f"{self.blocks}",
            "text": f"{self.text_dim} wide",
        }


def wan_shape(state: Mapping[str, Tensor]) -> WanShape:
    """Read the sizes from the weights.

    Args:
        state: the weights in the file layout with Wan's names.

    Raises:
        CheckpointError: if the weights are not those of a Wan 2.1 image-to-video transformer.
    """
    patch_embed, mlp = state.get("patch_embedding.weight"), state.get("blocks.0.ffn.0.weight")
    text, time = state.get("text_embedding.0.weight"), state.get("time_embedding.0.weight")
    if patch_embed is None or mlp is None or text is None or time is None:
        raise CheckpointError(
            "These are not the weights of a Wan transformer: patch_embedding, text_embedding, time_embedding or "
            "blocks.0.ffn is missing. Load a complete Wan 2.1 image-to-video model."
        )
    hidden = patch_embed.shape[0]
    if patch_embed.ndim != 5 or tuple(patch_embed.shape[2:]) != (1, PATCH, PATCH) or hidden % HEAD_DIM:
        raise CheckpointError(
            f"patch_embedding.weight has shape {list(patch_embed.shape)}, expected [heads * 128, channels, 1, 2, 2]. "
            f"This is not a Wan 2.1 transformer. Choose a Wan 2.1 image-to-video model file."
        )
    if "img_emb.proj.1.weight" not in state:
        found = _WITHOUT_FEATURES.get(patch_embed.shape[1], "another variant")
        raise CheckpointError(
            f"This Wan transformer is {found}: it has {patch_embed.shape[1]} input channels and uses no CLIP features "
            f"(img_emb is missing). Expected Wan 2.1 image-to-video with {IMAGE_CHANNELS} input channels. Choose such "
            f"a file."
        )
    return WanShape(
        in_channels=patch_embed.shape[1],
        hidden=hidden,
        mlp=mlp.shape[0],
        blocks=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        text_dim=text.shape[1],
        frequencies=time.shape[1],
    )


def normalised(latents_BCTHW: Tensor) -> Tensor:
    """Convert latents from the VAE's scale to the network's: return `(latent - mean) / std` per channel.

    Args:
        latents_BCTHW: `[B, 16, T, H, W]`.
    """
    mean = latents_BCTHW.new_tensor(LATENT_MEAN).reshape(1, -1, 1, 1, 1)
    return (latents_BCTHW - mean) / latents_BCTHW.new_tensor(LATENT_STD).reshape(1, -1, 1, 1, 1)


def denormalised(latents_BCTHW: Tensor) -> Tensor:
    """Convert latents from the network's scale to the VAE's, which its decoder expects. The inverse of `normalised`.

    Args:
        latents_BCTHW: `[B, 16, T, H, W]`.
    """
    mean = latents_BCTHW.new_tensor(LATENT_MEAN).reshape(1, -1, 1, 1, 1)
    return latents_BCTHW * latents_BCTHW.new_tensor(LATENT_STD).reshape(1, -1, 1, 1, 1) + mean


def image_condition(image: StartImage, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Return the 20 channels that follow the noisy latent (mask, then image), and the CLIP features.

    The mask is 1 on the known latent frames in all four channels, else 0. Known is frame 0, and in a video that
    continues another one, the frames that it shares with that. The VAE encodes the known frames and the gray frames
    after them together; padding the latent of the image with zeros would produce other values.

    Args:
        image: latents `[B, 16, T, H, W]` of image and gray frames in the network's scale, and CLIP features.
        latent_frames: number of latent frames of the video; must equal T.

    Returns:
        Channels `[B, 20, T, H, W]` and features `[B, 257, 1280]`.

    Raises:
        CheckpointError: if the latents do not have `latent_frames` frames, or there are no features.
    """
    latents, features = image.latents, image.features
    if latents.shape[2] != latent_frames or features is None:
        raise CheckpointError(
            f"A Wan 2.1 start image has {latents.shape[2]} latent frames and {'no' if features is None else 'its'} "
            f"CLIP features. Expected {latent_frames} latent frames (image and gray frames encoded together) and "
            f"features. Prepare the data again for this family."
        )
    mask = latents.new_zeros(latents.shape[0], MASK_CHANNELS, latent_frames, *latents.shape[3:])
    mask[:, :, : image.known_frames] = 1
    return torch.cat([mask, latents], dim=1), features


ARCHITECTURE = Architecture(
    name="wan",
    title="Wan 2.1",
    layout=WAN,
    file_mark="head.modulation",
    diffusers_mark="condition_embedder.time_proj.weight",
    file_spelling="Wan",
    shape=wan_shape,
    prompt_tokens=TEXT_TOKENS,
    prompt_has_pooled=False,
    negative_text=NEGATIVE_TEXT,
    relatives=_RELATIVES,
)
IMAGE_TO_VIDEO = Family(
    ARCHITECTURE,
    i2v_mode="concat",
    title="image-to-video by concatenation (noise 16 + mask 4 + image 16) and CLIP features",
    in_channels=IMAGE_CHANNELS,
    condition=image_condition,
    image_covers_video=True,
    feature_shape=FEATURE_SHAPE,
)
FAMILIES = (IMAGE_TO_VIDEO,)

"""What a family of teachers is: a transformer's architecture, and the way in which the start image enters it.

A family is one module here, which names its `Family` objects in `FAMILIES`, and one of the same name in
`train/families`, which builds and calls the network; both packages find their modules themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..layouts.modules import LayoutMap

# What a family makes of a start image, for its network alone to understand. The batch is every tensor's first axis.
Condition = Tensor | tuple[Tensor, ...]


class Shape(Protocol):
    """The sizes of a transformer, read off its weights."""

    @property
    def in_channels(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def guidance_embed(self) -> bool: ...

    def facts(self) -> dict[str, str]:
        """The sizes in words, by label."""


@dataclass(frozen=True)
class NullPrompt:
    """The text conditioning of image-to-video without a prompt, kept beside the weights.

    `text_states` is `[1, L, text_dim]`, every token counting (no padding but what the network was trained to see);
    `pooled` is `[1, pooled_dim]`, or None for a family without pooled text.
    """

    text_states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class StartImage:
    """A batch of start images as a family wants them.

    Attributes:
        latents: in the network's scale, `[B, 16, 1, H, W]`: the image encoded as one frame; or `[B, 16, T, H, W]` for a
            family that encodes the image and gray frames behind it.
        features: of CLIP's vision tower, `[B, tokens, width]`, for a family whose network looks at them.
    """

    latents: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice) -> "StartImage":
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "StartImage":
        """The images on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "StartImage":
        """The images with a function applied to each of their tensors."""
        features = None if self.features is None else function(self.features)
        return StartImage(function(self.latents), features)


@dataclass(frozen=True)
class Architecture:
    """A transformer: its names and sizes.

    Attributes:
        name: what recipes call it (`Recipe.family`).
        title: what people call it.
        layout: diffusers' names against those of single files.
        file_mark, diffusers_mark: tensors that only the one and only the other spelling has.
        file_spelling: whose names the file layout has.
        shape: reads the sizes off a state dict in the file layout; CheckpointError if it is none of this kind.
        prompt_has_pooled: whether the text conditioning has a pooled part.
    """

    name: str
    title: str
    layout: LayoutMap
    file_mark: str
    diffusers_mark: str
    file_spelling: str
    shape: Callable[[Mapping[str, Tensor]], Any]
    prompt_has_pooled: bool = True


@dataclass(frozen=True)
class Family:
    """An architecture with one way of taking the start image.

    Attributes:
        architecture: the transformer.
        i2v_mode: the way, as recipes and options name it (`Recipe.i2v_mode`).
        title: what people call it.
        in_channels: input channels of the patch embedding; several families may share a number.
        condition: makes the condition of a start image, given how many latent frames the video has.
        kept_frames: leading latent frames that are the start image's own, known and clean: the network sees them, noise
            never reaches them, and neither the loss nor a sampler's step touches them.
        image_covers_video: whether `StartImage.latents` has as many frames as the video.
        feature_shape: (tokens, width) of `StartImage.features`, or None.
        diffusers_mode: what diffusers' config.json calls the way (`image_condition_type`).
        takes_image: False for text-to-video, which is no teacher of image-to-video.
    """

    architecture: Architecture
    i2v_mode: str
    title: str
    in_channels: int
    condition: Callable[[StartImage, int], Condition]
    kept_frames: int = 0
    image_covers_video: bool = False
    feature_shape: tuple[int, int] | None = None
    diffusers_mode: str | None = None
    takes_image: bool = True

    def free(self, latents_BCTHW: Tensor) -> Tensor:
        """The frames of a clean latent that are generated: what noise, losses and samplers work on."""
        return latents_BCTHW[:, :, self.kept_frames :]

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`free` for shapes: `(..., T, H, W)` of a whole latent to that of its generated frames."""
        return (*shape[:-3], shape[-3] - self.kept_frames, *shape[-2:])

    def whole(self, free_BCTHW: Tensor, image: StartImage) -> Tensor:
        """A whole latent from its generated frames: the frames that the start image gives stand before them."""
        if not self.kept_frames:
            return free_BCTHW
        return torch.cat([image.latents[:, :, : self.kept_frames].to(free_BCTHW), free_BCTHW], dim=2)

    def image_frames(self, latent_frames: int) -> int:
        """Frames of `StartImage.latents` for a video of so many latent frames."""
        return latent_frames if self.image_covers_video else 1


def map_condition(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """A condition with a function applied to each of its tensors."""
    if isinstance(condition, tuple):
        return tuple(function(tensor) for tensor in condition)
    return function(condition)

"""The definition of a model family: a transformer architecture and how the start image enters it.

Each architecture has two modules with the same name. The module here lists its `Family` objects in `FAMILIES`. The
module in `train/networks/families` builds and calls the network. Both packages find their modules themselves.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layouts.modules import LayoutMap

# The conditioning on a start image. Its form depends on the family. The batch is the first axis of every tensor.
Condition = Tensor | tuple[Tensor, ...]


class Shape(Protocol):
    """The sizes of a transformer, read from its weights.

    Attributes:
        in_channels: input channels of the patch embedding.
        hidden: hidden size, the width of the tokens.
        heads: number of attention heads.
        guidance_embed: whether the guidance scale is an input of the network.
    """

    @property
    def in_channels(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def guidance_embed(self) -> bool: ...

    def facts(self) -> dict[str, str]:
        """Return the sizes as text for people, by label."""


@dataclass(frozen=True)
class NullPrompt:
    """The text conditioning for image-to-video without a prompt. It is stored in the model file.

    Attributes:
        text_states: `[1, L, text_dim]`. The network attends to every token, so there is no padding except padding that
            the network was trained with.
        pooled: `[1, pooled_dim]`, or None for a family without pooled text.
    """

    text_states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class StartImage:
    """A batch of start images, encoded for one family.

    Attributes:
        latents: the image encoded as one frame, `[B, 16, 1, H, W]`. For a family that encodes the image followed by
            gray frames: `[B, 16, T, H, W]`. Both are in the network's scale.
        features: features of CLIP's vision tower, `[B, tokens, width]`, for a family whose network uses them.
        known_frames: first latent frames that the image, or a video that is continued, determines. More than 1 only for
            a family that encodes them together with gray frames.
    """

    latents: Tensor
    features: Tensor | None = None
    known_frames: int = 1

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice) -> "StartImage":
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "StartImage":
        """Return the images on a device, as a new object."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "StartImage":
        """Apply a function to `latents` and, if there are any, to `features`; return the results as a new object."""
        features = None if self.features is None else function(self.features)
        return StartImage(function(self.latents), features, self.known_frames)


@dataclass(frozen=True)
class Architecture:
    """A transformer: its names and sizes.

    Attributes:
        name: its name in recipes (`Recipe.family`).
        title: its name in texts for people.
        layout: the map between diffusers' names and the names in single files.
        file_mark: the name of a tensor that exists only in the file layout.
        diffusers_mark: the name of a tensor that exists only in diffusers' layout.
        file_spelling: who defined the names of the file layout.
        shape: reads the sizes (a `Shape`) from a state dict in the file layout; it raises CheckpointError if the
            weights are of another kind.
        prompt_tokens: tokens of the longest prompt that its text encoders make, tokens of the start image included.
        prompt_has_pooled: whether the text conditioning has a pooled part.
        negative_text: the negative prompt that the release publishes; "" if it publishes none.
        relatives: models with other inputs that look like this transformer: their titles by the beginning of a tensor's
            name that only they have, in either layout.
    """

    name: str
    title: str
    layout: LayoutMap
    file_mark: str
    diffusers_mark: str
    file_spelling: str
    shape: Callable[[Mapping[str, Tensor]], Any]
    prompt_tokens: int
    prompt_has_pooled: bool = True
    negative_text: str = ""
    relatives: Mapping[str, str] = field(default_factory=dict, hash=False)

    def refuse_relatives(self, names: Collection[str], source: str) -> None:
        """Refuse the weights of a model that has the same transformer with other inputs.

        Args:
            names: tensor names, in the file layout or in diffusers' layout.
            source: the file's name for error messages.

        Raises:
            CheckpointError: if a name belongs to one of `relatives`.
        """
        for mark, title in self.relatives.items():
            if found := next((name for name in names if name.startswith(mark)), None):
                raise CheckpointError(
                    f"{source} is {title} (it has {found}), expected {self.title} image-to-video. Choose a model file "
                    f"of that."
                )


@dataclass(frozen=True)
class Family:
    """An architecture with one image-to-video mode: how the start image enters the network.

    Attributes:
        architecture: the transformer.
        i2v_mode: the mode's name in recipes and options (`Recipe.i2v_mode`).
        title: its name in texts for people.
        in_channels: input channels of the patch embedding; several families may have the same number.
        condition: computes the condition from a start image and the number of latent frames of the video.
        kept_frames: number of leading latent frames that hold the clean start image. The network sees these frames.
            Noise, loss and sampler steps do not apply to them.
        image_covers_video: whether `StartImage.latents` has as many frames as the video.
        feature_shape: (tokens, width) of `StartImage.features`, or None.
        diffusers_mode: the mode's name in diffusers' config.json (`image_condition_type`).
        takes_image: False for text-to-video, which cannot be an image-to-video teacher.
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
        """Return the generated frames of a clean latent: all frames except the first `kept_frames`.

        Noise, losses and samplers apply to these frames only.

        Args:
            latents_BCTHW: full latents, including the start image's frames.
        """
        return latents_BCTHW[:, :, self.kept_frames :]

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the generated frames for the shape `(..., T, H, W)` of a full latent."""
        return (*shape[:-3], shape[-3] - self.kept_frames, *shape[-2:])

    def whole(self, free_BCTHW: Tensor, image: StartImage) -> Tensor:
        """Return the full latent: the kept frames of the start image, then the generated frames. The inverse of `free`.

        Args:
            free_BCTHW: the generated frames.
            image: the start images of the same batch.
        """
        if not self.kept_frames:
            return free_BCTHW
        return torch.cat([image.latents[:, :, : self.kept_frames].to(free_BCTHW), free_BCTHW], dim=2)

    def image_frames(self, latent_frames: int) -> int:
        """Return the number of frames of `StartImage.latents` for a video of `latent_frames` latent frames."""
        return latent_frames if self.image_covers_video else 1


def map_condition(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """Apply a function to each tensor of a condition; return the results in the same form."""
    if isinstance(condition, tuple):
        return tuple(function(tensor) for tensor in condition)
    return function(condition)

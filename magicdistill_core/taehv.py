"""A tiny video autoencoder in the TAEHV file layout, which ComfyUI loads as a native HunyuanVideo VAE.

Latents have 16 channels and 1/8 of the width and height. Frame 0 has its own latent frame; every four further frames
share one. The latents are in the diffusion network's scale. ComfyUI's LATENT is the same divided by
`families.hunyuan_video.LATENT_SCALE`.

The autoencoder is causal in time: each memory block also reads the previous frame of its input, and zeros before the
first. The encoder puts three copies of frame 0 before a clip of 4n + 1 frames. Therefore latent frame 0 depends on
frame 0 only and equals the latent of a still image, and latent frame k covers frames 4k - 3 .. 4k. Without gradients,
long or large clips are processed in parts, so the memory of the activations does not grow with the length.
"""

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import MagicDistillError
from .families.hunyuan_video import ARCHITECTURE
from .geometry import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE, check_geometry

# Pixels of a clip per part: 16 frames of 544 x 960. One activation of 64 channels then takes 2 GB in float32.
_PART_PIXELS = 2**23
_ENCODER_WIDTH = 64
_DECODER_WIDTHS = (256, 128, 64, 64)


class TAEHVError(MagicDistillError):
    """Raised when a tensor or a file does not fit the TAEHV layout."""


def _conv(n_in: int, n_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class SoftClamp(nn.Module):
    """A layer that limits latents smoothly to (-3, 3) before decoding: `3 tanh(x / 3)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `3 tanh(x / 3)`, shaped as `x`."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """A residual block that also reads the previous frame: `relu(conv([x_t, x_{t-1}]) + x_t)`.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, batch: int, before: Tensor | None = None) -> Tensor:
        """Run the block on all frames of a batch of clips; return a tensor shaped as `x`.

        Args:
            x: `[batch * T, C, H, W]`; the frames of one clip are consecutive.
            batch: number of clips.
            before: `[batch, C, H, W]`, the frame before the first frame of each clip; None means zeros.
        """
        # A shift along the flat axis, unlike one in a 5-D view, keeps the channels-last memory format.
        past = torch.cat([torch.zeros_like(x[:1]), x[:-1]], dim=0)
        frames = x.shape[0] // batch
        if before is not None:
            past[::frames] = before
        elif batch > 1:
            first = torch.arange(x.shape[0], device=x.device) % frames == 0
            past = past.masked_fill(first.view(-1, 1, 1, 1), 0)
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class TemporalPool(nn.Module):
    """A layer that merges `stride` consecutive frames into one with a 1 x 1 convolution.

    Args:
        width: number of channels.
        stride: number of frames to merge; 1 keeps the number of frames.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[T / stride, C, H, W]` for frames `x` `[T, C, H, W]`."""
        return self.conv(torch.cat([x[start :: self.stride] for start in range(self.stride)], dim=1))


class TemporalGrow(nn.Module):
    """A layer that splits each frame into `stride` consecutive ones with a 1 x 1 convolution.

    Args:
        width: number of channels.
        stride: number of frames per input frame; 1 keeps the number of frames.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[T * stride, C, H, W]` for frames `x` `[T, C, H, W]`."""
        return self.conv(x).reshape(-1, *x.shape[1:])


def _build_encoder() -> nn.Sequential:
    width = _ENCODER_WIDTH
    layers: list[nn.Module] = [_conv(3, width), nn.ReLU()]
    for stride in (2, 2, 1):
        layers += [TemporalPool(width, stride), _conv(width, width, stride=2, bias=False)]
        layers += [MemoryBlock(width) for _ in range(3)]
    return nn.Sequential(*layers, _conv(width, LATENT_CHANNELS))


def _build_decoder() -> nn.Sequential:
    widths = _DECODER_WIDTHS
    layers: list[nn.Module] = [SoftClamp(), _conv(LATENT_CHANNELS, widths[0]), nn.ReLU()]
    for width, narrower, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
        layers += [MemoryBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TemporalGrow(width, stride), _conv(width, narrower, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))


def run_stack(stack: nn.Module, clips: Tensor, memory: dict[int, Tensor] | None = None) -> Tensor:
    """Run a stack of layers on all frames of clips at once.

    Args:
        stack: the encoder, the decoder, or a slice of one (an `nn.Sequential`).
        clips: `[B, T, C, H, W]`.
        memory: the last input frame of each memory block, by its index in the stack. Pass an empty dict with the first
            part of a clip and the same dict with every further part; it is updated in place. None for complete clips.

    Returns:
        `[B, T', C', H', W']`.
    """
    assert isinstance(stack, nn.Sequential)  # the type of a slice of nn.Sequential is nn.Module for mypy
    batch = clips.shape[0]
    x = clips.flatten(0, 1)
    for place, layer in enumerate(stack):
        if not isinstance(layer, MemoryBlock):
            x = layer(x)
        elif memory is None:
            x = layer(x, batch)
        else:
            seen = x.unflatten(0, (batch, -1))[:, -1].clone()  # a view would keep all of x in memory
            x, memory[place] = layer(x, batch, memory.get(place)), seen
    return x.unflatten(0, (batch, -1))


def _run_in_parts(stack: nn.Module, clips: Tensor, frames: int) -> Tensor:
    """Like `run_stack`, but with at most `frames` input frames at a time if gradients are disabled."""
    if clips.shape[1] <= frames or torch.is_grad_enabled():
        return run_stack(stack, clips)
    memory: dict[int, Tensor] = {}
    return torch.cat([run_stack(stack, part, memory) for part in clips.split(frames, dim=1)], dim=1)


def _part(height: int, width: int) -> int:
    """Return the number of video frames per part for a frame size, a multiple of `TIME_STRIDE`."""
    return max(1, _PART_PIXELS // (height * width * TIME_STRIDE)) * TIME_STRIDE


class TAEHV(nn.Module):
    """The autoencoder. Frames are `[B, T, 3, H, W]` in [0, 1], latents `[B, 16, t, H / 8, W / 8]`."""

    # The architecture whose latents it encodes to.
    architecture: ClassVar[str] = ARCHITECTURE.name

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _build_encoder()
        self.decoder = _build_decoder()

    def encode(self, frames: Tensor) -> Tensor:
        """Encode clips to latents `[B, 16, n + 1, H / 8, W / 8]` in the diffusion network's scale.

        Args:
            frames: `[B, 4n + 1, 3, H, W]` in [0, 1]; H and W are multiples of 16.

        Raises:
            TAEHVError: if the shape is not `[B, T, 3, H, W]`.
            VideoError: unless T is 4n + 1 and H and W are multiples of 16.
        """
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise TAEHVError(f"Expected frames of shape [B, T, 3, H, W], got {list(frames.shape)}.")
        count, height, width = frames.shape[1], frames.shape[3], frames.shape[4]
        check_geometry(count, height, width)
        front = frames[:, :1].expand(-1, TIME_STRIDE - 1, -1, -1, -1)
        padded = torch.cat([front, frames], dim=1)
        return _run_in_parts(self.encoder, padded, _part(height, width)).transpose(1, 2)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode still images to latents `[B, 16, 1, H / 8, W / 8]`.

        The result equals latent frame 0 of a clip that starts with the image.

        Args:
            images: `[B, 3, H, W]` in [0, 1]; H and W are multiples of 16.

        Raises:
            TAEHVError: if the shape is not `[B, 3, H, W]`.
            VideoError: unless H and W are multiples of 16.
        """
        if images.ndim != 4:
            raise TAEHVError(f"Expected images of shape [B, 3, H, W], got {list(images.shape)}.")
        return self.encode(images.unsqueeze(1))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to frames `[B, 4n + 1, 3, 8h, 8w]`, clamped to [0, 1].

        Args:
            latents: `[B, 16, n + 1, h, w]` in the diffusion network's scale.

        Raises:
            TAEHVError: if the latents have another number of axes or channels.
        """
        return self.decode_unclamped(latents).clamp(0, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Decode latents as `decode` does, but without the final clamp, whose gradient is zero beyond black and white.

        Args:
            latents: see `decode`.

        Raises:
            TAEHVError: see `decode`.
        """
        if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
            raise TAEHVError(
                f"Expected latents of shape [B, {LATENT_CHANNELS}, t, h, w], got {list(latents.shape)}. "
                "Is this the latent of another video model? Use the VAE of that model."
            )
        # The first latent frame decodes to four frames. Three of them are the padding before frame 0 and are dropped.
        height, width = (SPACE_STRIDE * side for side in latents.shape[-2:])
        part = _part(height, width) // TIME_STRIDE
        return _run_in_parts(self.decoder, latents.transpose(1, 2), part)[:, TIME_STRIDE - 1 :]


def load_taehv(path: str | Path) -> TAEHV:
    """Load a safetensors file in the TAEHV layout as a float32 module in eval mode, on the CPU.

    Args:
        path: the file.

    Raises:
        TAEHVError: if the file is missing or damaged, or has another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise TAEHVError(f"There is no video autoencoder file at {path}. Check the path.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise TAEHVError(
            f"{path} cannot be read as a safetensors file. It may be truncated. Download or export it again."
        ) from error
    model = TAEHV()
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    if wrong:
        shown = ", ".join(wrong[:6]) + (", ..." if len(wrong) > 6 else "")
        raise TAEHVError(
            f"{path} is not a HunyuanVideo TAEHV-layout autoencoder: {len(wrong)} tensors are missing, unknown or have "
            f"another shape ({shown}). Expected {LATENT_CHANNELS} latent channels with encoder.* and decoder.* tensors."
        )
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval()

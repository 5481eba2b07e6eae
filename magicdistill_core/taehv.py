"""A tiny video autoencoder in the TAEHV file layout, which ComfyUI loads as a native HunyuanVideo VAE.

Latents have 16 channels, 1/8 of the width and height, and one latent frame for frame 0 plus one for every further
four frames. They are "network space" latents: what the diffusion network sees. ComfyUI's LATENT divides by
`families.hunyuan_video.LATENT_SCALE`.

The network is causal in time (each memory block sees the previous frame of its own level, zeros before the first).
A clip of 4n + 1 frames is encoded with three copies of frame 0 in front, so latent 0 belongs to frame 0 alone and
equals what a single still image encodes to, and latent k covers frames 4k - 3 .. 4k. Long or large clips go through
the network part by part, so that memory does not grow with their length.
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

# Of a clip, at a time: 16 frames of 544 x 960, of which one activation of 64 channels takes 2 GB in float32.
_PART_PIXELS = 2**23
_ENCODER_WIDTH = 64
_DECODER_WIDTHS = (256, 128, 64, 64)


class TAEHVError(MagicDistillError):
    """A tensor or a file that the TAEHV layout cannot take."""


def _conv(n_in: int, n_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class SoftClamp(nn.Module):
    """Bounds latents smoothly to (-3, 3) before decoding: `3 tanh(x / 3)`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """A residual block that also sees the previous frame: `relu(conv([x_t, x_{t-1}]) + x_t)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, batch: int, before: Tensor | None = None) -> Tensor:
        """Run the block on all frames of a batch of clips.

        Args:
            x: `[batch * T, C, H, W]`, frames of one clip next to each other.
            before: `[batch, C, H, W]`, the frames before the clips' first ones; None stands for zeros.
        """
        # Shifting along the flat axis (rather than in a 5-D view) keeps the channels-last memory format.
        past = torch.cat([torch.zeros_like(x[:1]), x[:-1]], dim=0)
        frames = x.shape[0] // batch
        if before is not None:
            past[::frames] = before
        elif batch > 1:
            first = torch.arange(x.shape[0], device=x.device) % frames == 0
            past = past.masked_fill(first.view(-1, 1, 1, 1), 0)
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class TemporalPool(nn.Module):
    """Merges `stride` consecutive frames into one with a 1 x 1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x[start :: self.stride] for start in range(self.stride)], dim=1))


class TemporalGrow(nn.Module):
    """Splits each frame into `stride` consecutive ones with a 1 x 1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
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
    """Run a stack on `[B, T, C, H, W]`, all frames at once.

    Args:
        memory: what each memory block saw last, by its place in the stack: empty for the first part of a clip, handed
            on and changed from part to part.
    """
    assert isinstance(stack, nn.Sequential)  # a slice of one, which its type does not say
    batch = clips.shape[0]
    x = clips.flatten(0, 1)
    for place, layer in enumerate(stack):
        if not isinstance(layer, MemoryBlock):
            x = layer(x)
        elif memory is None:
            x = layer(x, batch)
        else:
            seen = x.unflatten(0, (batch, -1))[:, -1].clone()  # not a view, which would keep all of x
            x, memory[place] = layer(x, batch, memory.get(place)), seen
    return x.unflatten(0, (batch, -1))


def _run_in_parts(stack: nn.Module, clips: Tensor, frames: int) -> Tensor:
    """As `run_stack`, by so many frames of the input at a time if gradients are not asked for."""
    if clips.shape[1] <= frames or torch.is_grad_enabled():
        return run_stack(stack, clips)
    memory: dict[int, Tensor] = {}
    return torch.cat([run_stack(stack, part, memory) for part in clips.split(frames, dim=1)], dim=1)


def _part(height: int, width: int) -> int:
    """How many video frames of a size are taken at a time, a multiple of what one latent frame stands for."""
    return max(1, _PART_PIXELS // (height * width * TIME_STRIDE)) * TIME_STRIDE


class TAEHV(nn.Module):
    """The autoencoder. Frames are `[B, T, 3, H, W]` in [0, 1], latents `[B, 16, t, H / 8, W / 8]`."""

    # Whose latents it makes.
    architecture: ClassVar[str] = ARCHITECTURE.name

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _build_encoder()
        self.decoder = _build_decoder()

    def encode(self, frames: Tensor) -> Tensor:
        """Encode clips of 4n + 1 frames to `[B, 16, n + 1, H / 8, W / 8]`.

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
        """Encode still images `[B, 3, H, W]` to `[B, 16, 1, H / 8, W / 8]`: latent 0 of any clip they begin."""
        if images.ndim != 4:
            raise TAEHVError(f"Expected images of shape [B, 3, H, W], got {list(images.shape)}.")
        return self.encode(images.unsqueeze(1))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode `[B, 16, n + 1, h, w]` to frames `[B, 4n + 1, 3, 8h, 8w]` clamped to [0, 1]."""
        return self.decode_unclamped(latents).clamp(0, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """As `decode` without the final clamp, whose zero gradient would stop training at black and white."""
        if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
            raise TAEHVError(
                f"Expected latents of shape [B, {LATENT_CHANNELS}, t, h, w], got {list(latents.shape)}. "
                "Is this the latent of another video model?"
            )
        # The first latent frame decodes to four, three of which stand for the padding in front of frame 0.
        height, width = (SPACE_STRIDE * side for side in latents.shape[-2:])
        part = _part(height, width) // TIME_STRIDE
        return _run_in_parts(self.decoder, latents.transpose(1, 2), part)[:, TIME_STRIDE - 1 :]


def load_taehv(path: str | Path) -> TAEHV:
    """Load a TAEHV-layout safetensors file as an fp32 module in eval mode.

    Raises:
        TAEHVError: if the file is missing, damaged, or of another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise TAEHVError(f"There is no video autoencoder file at {path}.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise TAEHVError(
            f"{path} is not a readable safetensors file ({error}). It may be cut off; fetch or make it again."
        ) from error
    model = TAEHV()
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    if wrong:
        shown = ", ".join(wrong[:6]) + (", ..." if len(wrong) > 6 else "")
        raise TAEHVError(
            f"{path} is not a HunyuanVideo TAEHV-layout autoencoder: {len(wrong)} tensors are missing, unknown or of "
            f"another shape ({shown}). Expected {LATENT_CHANNELS} latent channels with encoder.* and decoder.* tensors."
        )
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval()

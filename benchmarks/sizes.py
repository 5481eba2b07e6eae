"""The sizes that are measured: HunyuanVideo-I2V 13B on a large GPU, pocket sizes on any other machine."""

from dataclasses import dataclass

from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS, HEAD_DIM, NetworkShape
from magicdistill_core.geometry import LATENT_CHANNELS, PATCH, latent_shape

_TIMESTEP_FREQUENCIES = 256
_MLP_RATIO = 4

HUNYUAN_13B = NetworkShape(
    in_channels=CONCAT_CHANNELS,
    hidden=24 * HEAD_DIM,
    double_blocks=20,
    single_blocks=40,
    refiner_blocks=2,
    text_dim=4096,
    pooled_dim=768,
    guidance_embed=False,
)
POCKET = NetworkShape(
    in_channels=CONCAT_CHANNELS,
    hidden=HEAD_DIM,
    double_blocks=2,
    single_blocks=4,
    refiner_blocks=2,
    text_dim=64,
    pooled_dim=768,
    guidance_embed=False,
)


@dataclass(frozen=True)
class Clip:
    """The size of a video: `frames` is 4n + 1; `height` and `width` are in pixels and multiples of 16."""

    frames: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.frames} frames at {self.height}x{self.width}"

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of its latent, `[1, 16, T, H, W]`."""
        return tuple(latent_shape(self.frames, self.height, self.width))

    @property
    def tokens(self) -> int:
        """The number of video tokens in the transformer."""
        _, _, frames, rows, columns = self.latent
        return frames * (rows // PATCH) * (columns // PATCH)


@dataclass(frozen=True)
class Sizes:
    """One set of sizes.

    Attributes:
        shape: the shape of the transformer.
        text_tokens: tokens of a prompt, padding included.
        small, medium: short clips.
        usual: the clip length that distilled models are made for.
        longest: the longest clip that training must fit into memory.
    """

    shape: NetworkShape
    text_tokens: int
    small: Clip
    medium: Clip
    usual: Clip
    longest: Clip

    @property
    def clips(self) -> tuple[Clip, ...]:
        return (self.small, self.medium, self.usual, self.longest)


FULL_SIZES = Sizes(
    HUNYUAN_13B,
    text_tokens=256,
    small=Clip(17, 320, 512),
    medium=Clip(33, 544, 960),
    usual=Clip(81, 544, 960),
    longest=Clip(129, 544, 960),
)
POCKET_SIZES = Sizes(
    POCKET,
    text_tokens=8,
    small=Clip(5, 64, 64),
    medium=Clip(9, 96, 96),
    usual=Clip(17, 96, 96),
    longest=Clip(33, 96, 96),
)


def sizes_for(full: bool) -> Sizes:
    """Return the 13B sizes if `full`, otherwise the pocket sizes."""
    return FULL_SIZES if full else POCKET_SIZES


def attention_flops(hidden: int, tokens: int) -> int:
    """Count the multiplications and additions of one self-attention without its projections."""
    return 4 * tokens * tokens * hidden


def forward_flops(shape: NetworkShape, tokens: int, text_tokens: int) -> int:
    """Count the multiplications and additions of one forward of one sample: matrix products, convolution, attention.

    Args:
        shape: the sizes of the transformer.
        tokens: video tokens, as in `Clip.tokens`.
        text_tokens: tokens of the prompt, padding included.
    """
    h, both = shape.hidden, tokens + text_tokens
    embedder = 2 * (_TIMESTEP_FREQUENCIES * h + h * h)
    pooled = 2 * (shape.pooled_dim * h + h * h)
    patches = 2 * tokens * shape.in_channels * PATCH**2 * h
    output = 2 * h * 2 * h + 2 * tokens * h * PATCH**2 * LATENT_CHANNELS
    linears = 2 * h * h * (4 + 2 * _MLP_RATIO)  # q, k, v, out and the two linears of the MLP, per token
    refiner_block = text_tokens * linears + attention_flops(h, text_tokens) + 2 * h * 2 * h
    text_in = 2 * text_tokens * shape.text_dim * h + embedder + 2 * (shape.text_dim * h + h * h)
    double_block = both * linears + attention_flops(h, both) + 2 * (2 * h * 6 * h)
    # The single block has one output projection for attention and MLP. It does the same products as two linears.
    single_block = both * linears + attention_flops(h, both) + 2 * h * 3 * h
    return (
        patches
        + text_in
        + shape.refiner_blocks * refiner_block
        + embedder * (2 if shape.guidance_embed else 1)
        + pooled
        + shape.double_blocks * double_block
        + shape.single_blocks * single_block
        + output
    )

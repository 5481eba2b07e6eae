"""Initialise the autoencoder as a linear codec that is fitted to real frames, before the first gradient step.

A rectified pair `relu(s), relu(-s)` carries a signed number `s` unchanged through any number of relus. N channels
therefore carry N / 2 signed numbers linearly through the encoder, while its residual branches still return zero. Each
downsampling layer keeps the principal components of its input. The last layer whitens. Output layers start as the
least-squares regression on their features. Training thus starts at the quality of a linear transform codec.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.taehv import TAEHV, MemoryBlock, TemporalGrow, TemporalPool, run_stack


def _second_moment_basis(samples: Tensor, count: int) -> Tensor:
    """Return the `count` leading eigenvectors of the second moment of `samples [N, D]` as rows."""
    values, vectors = torch.linalg.eigh((samples.T @ samples / len(samples)).double())
    order = values.argsort(descending=True)[:count]
    return vectors[:, order].T.float()


def silence_branches(stack: nn.Module) -> None:
    """Make every memory block the identity: set the last convolution of its residual branch to zero.

    Args:
        stack: the encoder, the decoder, or a slice of one; it is changed.
    """
    with torch.no_grad():
        for block in stack.modules():
            if isinstance(block, MemoryBlock):
                last = block.conv[-1]
                assert isinstance(last, nn.Conv2d)
                last.weight.zero_()
                if last.bias is not None:
                    last.bias.zero_()


def _paired(rows: Tensor) -> Tensor:
    """Return filters for both signs of each component: `[n, ...]` to `[2n, ...]`."""
    return torch.cat([rows, -rows])


@torch.no_grad()
def start_encoder(vae: TAEHV, frames: Tensor) -> None:
    """Set the encoder to the chain of principal components described in the module docstring.

    Over these frames, the latents have zero mean, unit variance and no correlation.

    Args:
        vae: the autoencoder, on the CPU; its encoder is changed.
        frames: `[B, T, 3, H, W]` in [0, 1], with T a multiple of 4.
    """
    encoder = vae.encoder
    silence_branches(encoder)
    first = encoder[0]
    assert isinstance(first, nn.Conv2d)
    half = first.out_channels // 2
    centered = frames.flatten(0, 1) - 0.5
    patches = F.unfold(centered, 3, padding=1).transpose(1, 2).flatten(0, 1)
    basis = _second_moment_basis(patches[:: max(1, len(patches) // 50_000)], half)
    first.weight[: len(basis)] = basis.view(-1, 3, 3, 3)
    first.weight[half : half + len(basis)] = -basis.view(-1, 3, 3, 3)
    assert first.bias is not None
    first.bias.copy_(-0.5 * first.weight.sum(dim=(1, 2, 3)))
    x = encoder[1](first(frames.flatten(0, 1)))
    for place, layer in enumerate(encoder):
        if isinstance(layer, TemporalPool):
            _keep_signed(layer, half)
            down = encoder[place + 1]
            assert isinstance(down, nn.Conv2d)
            pooled = layer(x)
            _keep_components(down, pooled, half)
            x = down(pooled).relu()
    _whiten(encoder[-1], x, half)


def _keep_signed(pool: TemporalPool, half: int) -> None:
    """Convert rectified pairs back to signed numbers, and concatenate those of the pooled frames along channels."""
    weight = torch.zeros_like(pool.conv.weight)
    signed = torch.eye(half)
    for frame in range(pool.stride):
        rows, columns = slice(frame * half, (frame + 1) * half), 2 * half * frame
        weight[rows, columns : columns + half, 0, 0] = signed
        weight[rows, columns + half : columns + 2 * half, 0, 0] = -signed
    pool.conv.weight.copy_(weight)


def _keep_components(down: nn.Conv2d, x: Tensor, half: int) -> None:
    """Set a convolution to the principal components of each 2 x 2 block, with both signs."""
    patches = F.unfold(x, 2, stride=2).transpose(1, 2).flatten(0, 1)
    basis = _second_moment_basis(patches[:: max(1, len(patches) // 50_000)], half)
    down.weight.zero_()
    # The 2 x 2 block is the lower right part of a 3 x 3 kernel with stride 2 and padding 1.
    down.weight[:, :, 1:, 1:] = _paired(basis.view(half, x.shape[1], 2, 2))


def _whiten(last: nn.Module, x: Tensor, half: int) -> None:
    """Set the last layer to the leading components of the signed numbers, with zero mean and unit variance."""
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    signed = (x[:, :half] - x[:, half:]).movedim(1, -1).flatten(0, -2)
    mean = signed.mean(dim=0)
    values, vectors = torch.linalg.eigh((signed - mean).T @ (signed - mean) / len(signed))
    order = values.argsort(descending=True)[: last.out_channels]
    rows = (vectors[:, order] / values[order].sqrt()).T
    last.weight.zero_()
    last.weight[:, :half, 1, 1], last.weight[:, half:, 1, 1] = rows, -rows
    last.bias.copy_(-rows @ mean)


@torch.no_grad()
def pair_latents(first: nn.Module) -> None:
    """Make the decoder's first layer pass both signs of each latent, and a constant 1.

    The next layers have no bias: the constant serves as one. The remaining channels keep their weights.

    Args:
        first: the first convolution of the decoder; it is changed.
    """
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    count, half = first.in_channels, first.out_channels // 2
    for begin, sign in ((0, 1.0), (half, -1.0)):
        first.weight[begin : begin + count + 1] = 0
        first.weight[begin : begin + count, :, 1, 1] = sign * torch.eye(count)
    first.bias[count], first.bias[half + count] = 1, 0


@torch.no_grad()
def fit_readout(head: nn.Conv2d, features: Tensor, targets: Tensor, ridge: float = 1e-3) -> None:
    """Set the centre tap and bias of a convolution to the ridge regression of `targets` on `features`.

    Args:
        head: the convolution; it is changed.
        features: inputs of the convolution, `[N, channels, h, w]`.
        targets: `[N, C, h, w]`, where C is the number of output channels.
        ridge: strength of the ridge, relative to the mean variance of the features.
    """
    x = features.movedim(1, -1).flatten(0, -2).double()
    y = targets.movedim(1, -1).flatten(0, -2).double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    gram = (x - x_mean).T @ (x - x_mean) / len(x)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean) / len(x)).T
    middle = head.kernel_size[0] // 2
    head.weight.zero_()
    head.weight[:, :, middle, middle] = rows.float()
    assert head.bias is not None
    head.bias.copy_((y_mean - rows @ x_mean).float())


@torch.no_grad()
def start_decoder(vae: TAEHV, frames: Tensor, first_level: int) -> None:
    """Set the decoder's layers after the first level to least-squares regressions towards the frames.

    The targets of each level are principal components of blocks of pixels and frames, at the resolution of the level.
    They are regressed on the 3 x 3 neighbourhoods of the upsampled previous level. The level outputs them as rectified
    pairs.

    Args:
        vae: the autoencoder. Its encoder and the first level of its decoder are already set.
        frames: the padded clips, `[B, 4n, 3, H, W]`.
        first_level: number of layers in the first level.
    """
    decoder = vae.decoder
    silence_branches(decoder[first_level:])
    batch = frames.shape[0]
    latents = run_stack(vae.encoder, frames)
    x = run_stack(decoder[:first_level], latents).flatten(0, 1)
    side = x.shape[-1]
    ups = [place for place, layer in enumerate(decoder) if isinstance(layer, nn.Upsample)]
    per_frame = frames.shape[1] // latents.shape[1]
    for place in ups:
        grow, narrow = decoder[place + 1], decoder[place + 2]
        assert isinstance(grow, TemporalGrow)
        assert isinstance(narrow, nn.Conv2d)
        _fan_out(grow, x.shape[1] // 2)
        side, per_frame = side * 2, per_frame // grow.stride
        targets = _components(frames, per_frame, side, narrow.out_channels // 2)
        raised = grow(decoder[place](x))
        _regress(narrow, raised, targets)
        x = narrow(raised).relu()
    head = decoder[-1]
    assert isinstance(head, nn.Conv2d)
    fit_readout(head, x, frames.flatten(0, 1))
    assert x.shape[0] == batch * frames.shape[1]


def _fan_out(grow: TemporalGrow, half: int) -> None:
    """Convert pairs back to signed numbers. Each output frame has them in its first channels, and zeros in the rest."""
    width = 2 * half
    weight = torch.zeros_like(grow.conv.weight)
    signed = torch.eye(half)
    for frame in range(grow.stride):
        begin = frame * (width + half)
        weight[begin : begin + half, :half, 0, 0] = signed
        weight[begin : begin + half, half:, 0, 0] = -signed
    grow.conv.weight.copy_(weight)


def _components(frames: Tensor, per_frame: int, side: int, count: int) -> Tensor:
    """Return the `count - 1` leading components of the frames, and a constant 1.

    The components are at resolution `side`, with one set for each group of `per_frame` frames.
    """
    groups = (frames - 0.5).unflatten(1, (-1, per_frame)).flatten(0, 1).flatten(1, 2)
    blocks = F.pixel_unshuffle(groups, frames.shape[-1] // side)
    samples = blocks.movedim(1, -1).flatten(0, -2)
    basis = _second_moment_basis(samples, min(count - 1, samples.shape[1]))
    signed = torch.einsum("kc,nchw->nkhw", basis, blocks)
    return torch.cat([signed, torch.ones_like(signed[:, :1])], dim=1)


def _regress(narrow: nn.Conv2d, x: Tensor, targets: Tensor, ridge: float = 1e-4, rows: int = 20_000) -> None:
    """Set a 3 x 3 convolution without bias to the ridge regression of `targets` on `x`, with both signs."""
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    expected = targets.flatten(2).transpose(1, 2).flatten(0, 1)
    stride = max(1, len(patches) // rows)
    patches, expected = patches[::stride].double(), expected[::stride].double()
    used = patches.square().mean(dim=0) > 1e-10
    patches = patches[:, used]
    gram = patches.T @ patches / len(patches)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, patches.T @ expected / len(patches)).T.float()
    weight = torch.zeros(solution.shape[0], len(used))
    weight[:, used] = solution
    half = narrow.out_channels // 2
    # The other channels keep small random weights, because a channel of zeros before a relu would never learn.
    narrow.weight.mul_(0.3)
    for begin, sign in ((0, 1), (half, -1)):
        narrow.weight[begin : begin + len(weight)] = sign * weight.view(-1, *narrow.weight.shape[1:])

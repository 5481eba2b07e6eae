"""Small networks in the file formats of ComfyUI's frame interpolation and upscaling, with outputs that are known."""

import torch
from torch import Tensor

_WIDTH, _HEAD, _BLOCKS = 4, 4, 5
# ComfyUI's upscaling library fixes the growth of ESRGAN's dense blocks.
_FILTERS, _GROWTH, _UPSCALING_BLOCKS = 8, 32, 2


def averaging_rife() -> dict[str, Tensor]:
    """Return a RIFE network without motion: a new frame is the mean of its neighbours."""
    state = {}
    for layer, (out, into) in enumerate([(16, 3), (16, 16), (16, 16)]):
        state |= _layer(f"encode.cnn{layer}", (out, into, 3, 3), out)
    state |= _layer("encode.cnn3", (16, _HEAD, 4, 4), _HEAD)
    for block in range(_BLOCKS):
        into = 7 + 2 * _HEAD if block == 0 else 20 + 2 * _HEAD
        name = f"block{block}"
        state |= _layer(f"{name}.conv0.0.0", (_WIDTH // 2, into, 3, 3), _WIDTH // 2)
        state |= _layer(f"{name}.conv0.1.0", (_WIDTH, _WIDTH // 2, 3, 3), _WIDTH)
        for part in range(8):
            state |= _layer(f"{name}.convblock.{part}.conv", (_WIDTH, _WIDTH, 3, 3), _WIDTH)
            state[f"{name}.convblock.{part}.beta"] = torch.zeros(1, _WIDTH, 1, 1)
        state |= _layer(f"{name}.lastconv.0", (_WIDTH, 52, 4, 4), 52)
    return state


def repeating_esrgan() -> dict[str, Tensor]:
    """Return an ESRGAN that makes four times four pixels of each pixel, all of its colour."""
    state = _layer("conv_body", (_FILTERS, _FILTERS, 3, 3), _FILTERS)
    for block in range(_UPSCALING_BLOCKS):
        for dense in range(1, 4):
            for layer in range(1, 6):
                out = _FILTERS if layer == 5 else _GROWTH
                into = _FILTERS + (layer - 1) * _GROWTH
                state |= _layer(f"body.{block}.rdb{dense}.conv{layer}", (out, into, 3, 3), out)
    sizes = {"conv_first": (_FILTERS, 3), "conv_last": (3, _FILTERS)}
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        out, into = sizes.get(name, (_FILTERS, _FILTERS))
        state |= _layer(name, (out, into, 3, 3), out)
        for channel in range(3):
            state[f"{name}.weight"][channel, channel, 1, 1] = 1.0
    return state


def _layer(name: str, shape: tuple[int, ...], outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(outputs)}

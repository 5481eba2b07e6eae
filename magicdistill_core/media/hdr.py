"""High dynamic range (PQ and HLG, BT.2100) as the colours of a usual screen (BT.709)."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_PQ, _HLG = 16, 18
HDR_TRANSFERS = frozenset({_PQ, _HLG})
"""FFmpeg's numbers of the transfer functions that need tone mapping."""

# BT.2100, tables 4 and 5
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_PQ_PEAK = 10000.0
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073
_HLG_GAMMA = 1.2
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Brightness in cd/m2: most HDR videos are made on screens of 1000, and their white paper has 203 (BT.2408).
_PEAK, _WHITE = 1000.0, 203.0
# BT.2087, the inverse of its matrix from BT.709 to BT.2020
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_SCREEN_GAMMA = 2.4  # BT.1886
_STEPS = 4096


def to_sdr(rgb: NDArray[np.float32], transfer: int) -> NDArray[np.float32]:
    """Map HDR to BT.709. Brightness up to about half of white is kept; brighter parts are compressed (BT.2390).

    Args:
        rgb: `[..., 3]` in [0, 1], BT.2020 with the transfer function.
        transfer: FFmpeg's number of the transfer function, one of `HDR_TRANSFERS`.

    Returns:
        `[..., 3]` in [0, 1], with the gamma of BT.1886.
    """
    light = _pq_to_light(rgb) if transfer == _PQ else _hlg_to_light(rgb)
    brightest = light.max(-1, keepdims=True)
    levels = _light_to_pq(brightest)
    # All channels get one factor, which keeps the hue.
    mapped = np.interp(levels, np.linspace(0, 1, _STEPS, dtype=np.float32), _compressed())
    screen = (light * (mapped / np.maximum(brightest, 1e-6)).astype(np.float32)) @ _TO_709.T / _WHITE
    return (np.clip(screen, 0, 1) ** (1 / _SCREEN_GAMMA)).astype(np.float32)


def _pq_to_light(code: NDArray[np.float32]) -> NDArray[np.float32]:
    root = code ** (1 / _M2)
    return (_PQ_PEAK * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)).astype(np.float32)


def _light_to_pq(light: NDArray[np.float32]) -> NDArray[np.float32]:
    root = (np.maximum(light, 0) / _PQ_PEAK) ** _M1
    return (((_C1 + _C2 * root) / (1 + _C3 * root)) ** _M2).astype(np.float32)


def _hlg_to_light(code: NDArray[np.float32]) -> NDArray[np.float32]:
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - _HLG_C) / _HLG_A) + _HLG_B) / 12)
    luma = (scene @ _LUMA)[..., None]
    return (_PEAK * scene * luma ** (_HLG_GAMMA - 1)).astype(np.float32)


@cache
def _compressed() -> NDArray[np.float32]:
    """Return the light on the screen for PQ levels from 0 to 1: the curve of BT.2390-8, 5.4.1, without black level."""
    source, white = _light_to_pq(np.array([_PEAK, _WHITE], np.float32))
    level = np.minimum(np.linspace(0, 1, _STEPS, dtype=np.float32) / source, 1)
    peak = white / source
    knee = 1.5 * peak - 0.5
    t = np.clip((level - knee) / (1 - knee), 0, 1)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * peak
    return _pq_to_light(np.where(level < knee, level, curve) * source)

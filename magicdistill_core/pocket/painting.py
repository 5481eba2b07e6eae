"""A canvas of several frames, and soft-edged shapes to paint on it."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Window = tuple[slice, slice]


def cover(distance: Array, softness: Array | float) -> Array:
    """Return the coverage of a shape from its signed distance (negative inside): a linear ramp of width `softness`.

    With a softness of one pixel, this is box-filter antialiasing of a straight edge.
    """
    return np.clip(0.5 - distance / softness, 0.0, 1.0, dtype=np.float32)


def falloff(distance: Array, width: Array | float) -> Array:
    """Return a bell curve around distance 0 for soft shading. It is exactly 0 beyond `2 * width`."""
    inner = np.clip(1.0 - (distance / (2.0 * width)) ** 2, 0.0, 1.0, dtype=np.float32)
    return inner * inner


class Canvas:
    """RGB frames, planar float32 `[3, T, H, W]` in [0, 1]. Blending is linear in display values (no gamma)."""

    def __init__(self, frames: int, size: int) -> None:
        centers = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
        self.x: Array = centers.reshape(1, 1, size)
        self.y: Array = centers.reshape(1, size, 1)
        self.pixel = 2.0 / size
        self.rgb: Array = np.zeros((3, frames, size, size), dtype=np.float32)
        self._whole: Window = (slice(0, size), slice(0, size))

    def window(self, rows: Array, columns: Array) -> Window:
        """Return the smallest window with all pixel centres between the extremes of `rows` (y) and `columns` (x)."""
        size = self.rgb.shape[-1]

        def span(values: Array) -> slice:
            low = int(np.floor((float(values.min()) + 1) / self.pixel - 0.5))
            high = int(np.ceil((float(values.max()) + 1) / self.pixel + 0.5))
            return slice(min(max(low, 0), size - 1), max(min(high, size), 1))

        return span(rows), span(columns)

    def shifted(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the picture coordinates relative to an object moved by (x, y): `[T, 1, W]` and `[T, H, 1]`."""
        return self.x - x, self.y - y

    def paint_gradient(self, along: Array, near: tuple[float, ...], far: tuple[float, ...]) -> None:
        """Fill the canvas: colour `near` where `along` is 0, colour `far` where it is 1."""
        for channel in range(3):
            self.rgb[channel] = near[channel] + (far[channel] - near[channel]) * along

    def paint(self, alpha: Array, color: tuple[float, ...], window: Window | None = None) -> None:
        """Blend a flat colour over the canvas."""
        rows, columns = window or self._whole
        for channel in range(3):
            target = self.rgb[channel, :, rows, columns]
            target += alpha * (np.float32(color[channel]) - target)

    def paint_shaded(self, alpha: Array, color: tuple[float, ...], shade: Array, window: Window | None = None) -> None:
        """Blend `color * shade` over the canvas. Shadows are slightly warmer, as on skin and cloth."""
        rows, columns = window or self._whole
        for channel, warmth in enumerate((0.06, 0.0, -0.05)):
            target = self.rgb[channel, :, rows, columns]
            lit = np.float32(color[channel]) * (shade + np.float32(warmth) * (1 - shade))
            target += alpha * (lit - target)

    def multiply(self, alpha: Array, factors: tuple[float, ...], window: Window | None = None) -> None:
        """Tint the canvas: multiply each channel by its factor where `alpha` is 1."""
        rows, columns = window or self._whole
        for channel in range(3):
            self.rgb[channel, :, rows, columns] *= 1 + alpha * np.float32(factors[channel] - 1)

    def to_uint8(self) -> npt.NDArray[np.uint8]:
        """Return the frames as uint8 `[T, H, W, 3]`."""
        bounded = np.clip(self.rgb, 0.0, 1.0) * 255.0 + 0.5
        return np.ascontiguousarray(bounded.astype(np.uint8).transpose(1, 2, 3, 0))

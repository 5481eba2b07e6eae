"""A canvas of several frames, and soft-edged shapes to paint on it.

Picture coordinates are in half-image units: x grows to the right and y downwards, and the picture covers [-1, 1] in
both. A *window* is a pair of slices (rows, columns) of the canvas. *Coverage* and *alpha* are from 0 (nothing) to 1
(opaque) per pixel.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Window = tuple[slice, slice]


def cover(distance: Array, softness: Array | float) -> Array:
    """Return the coverage of a shape, from 0 (outside) to 1 (inside): a linear ramp across its edge.

    With a softness of one pixel, this is box-filter antialiasing of a straight edge.

    Args:
        distance: signed distance to the edge, negative inside.
        softness: width of the ramp, in the unit of `distance`.
    """
    return np.clip(0.5 - distance / softness, 0.0, 1.0, dtype=np.float32)


def falloff(distance: Array, width: Array | float) -> Array:
    """Return a bell curve for soft shading: 1 at distance 0, and exactly 0 from `2 * width` on.

    Args:
        distance: distance to the centre, of any sign.
        width: half of the distance at which the curve reaches 0.
    """
    inner = np.clip(1.0 - (distance / (2.0 * width)) ** 2, 0.0, 1.0, dtype=np.float32)
    return inner * inner


class Canvas:
    """RGB frames, planar float32 `[3, T, H, W]` in [0, 1]. Blending is linear in display values (no gamma).

    Attributes:
        x: picture coordinate of the pixel centres of a row, `[1, 1, W]`, from -1 to 1.
        y: picture coordinate of the pixel centres of a column, `[1, H, 1]`, from -1 to 1.
        pixel: side of a pixel in picture coordinates.
        rgb: the frames.
    """

    def __init__(self, frames: int, size: int) -> None:
        centers = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
        self.x: Array = centers.reshape(1, 1, size)
        self.y: Array = centers.reshape(1, size, 1)
        self.pixel = 2.0 / size
        self.rgb: Array = np.zeros((3, frames, size, size), dtype=np.float32)
        self._whole: Window = (slice(0, size), slice(0, size))

    def window(self, rows: Array, columns: Array) -> Window:
        """Return the window that covers a region of the picture, as slices (rows, columns) of whole pixels.

        The window contains every pixel that the region touches, at least one row and one column. It is cut at the
        border of the canvas.

        Args:
            rows: y coordinates in [-1, 1]; the smallest and the largest one bound the region.
            columns: x coordinates in [-1, 1]; the smallest and the largest one bound the region.
        """
        size = self.rgb.shape[-1]

        def span(values: Array) -> slice:
            low = int(np.floor((float(values.min()) + 1) / self.pixel - 0.5))
            high = int(np.ceil((float(values.max()) + 1) / self.pixel + 0.5))
            return slice(min(max(low, 0), size - 1), max(min(high, size), 1))

        return span(rows), span(columns)

    def shifted(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the picture coordinates of every pixel relative to an object: `[T, 1, W]` and `[T, H, 1]`.

        Args:
            x: x coordinate of the object per frame, `[T, 1, 1]`.
            y: y coordinate of the object per frame, `[T, 1, 1]`.
        """
        return self.x - x, self.y - y

    def paint_gradient(self, along: Array, near: tuple[float, ...], far: tuple[float, ...]) -> None:
        """Fill the canvas with a gradient of two colours.

        Args:
            along: position in the gradient, broadcast to `[T, H, W]`: 0 is `near`, 1 is `far`.
            near: RGB in [0, 1].
            far: RGB in [0, 1].
        """
        for channel in range(3):
            self.rgb[channel] = near[channel] + (far[channel] - near[channel]) * along

    def paint(self, alpha: Array, color: tuple[float, ...], window: Window | None = None) -> None:
        """Blend a flat colour over the canvas.

        Args:
            alpha: opacity from 0 to 1, `[T, h, w]`.
            color: RGB in [0, 1].
            window: where to paint, of size h x w; None for the full canvas.
        """
        rows, columns = window or self._whole
        for channel in range(3):
            target = self.rgb[channel, :, rows, columns]
            target += alpha * (np.float32(color[channel]) - target)

    def paint_shaded(self, alpha: Array, color: tuple[float, ...], shade: Array, window: Window | None = None) -> None:
        """Blend `color * shade` over the canvas. Shadows are slightly warmer, as on skin and cloth.

        Args:
            alpha: opacity from 0 to 1, `[T, h, w]`.
            color: RGB in [0, 1].
            shade: brightness, `[T, h, w]`; 1 leaves the colour unchanged.
            window: where to paint, of size h x w; None for the full canvas.
        """
        rows, columns = window or self._whole
        for channel, warmth in enumerate((0.06, 0.0, -0.05)):
            target = self.rgb[channel, :, rows, columns]
            lit = np.float32(color[channel]) * (shade + np.float32(warmth) * (1 - shade))
            target += alpha * (lit - target)

    def multiply(self, alpha: Array, factors: tuple[float, ...], window: Window | None = None) -> None:
        """Tint the canvas: multiply each channel by its factor where `alpha` is 1, and not at all where it is 0.

        Args:
            alpha: strength from 0 to 1, `[T, h, w]`.
            factors: one factor per RGB channel; 1 changes nothing.
            window: where to tint, of size h x w; None for the full canvas.
        """
        rows, columns = window or self._whole
        for channel in range(3):
            self.rgb[channel, :, rows, columns] *= 1 + alpha * np.float32(factors[channel] - 1)

    def to_uint8(self) -> npt.NDArray[np.uint8]:
        """Return the frames as uint8 `[T, H, W, 3]`, clipped to [0, 1] and rounded."""
        bounded = np.clip(self.rgb, 0.0, 1.0) * 255.0 + 0.5
        return np.ascontiguousarray(bounded.astype(np.uint8).transpose(1, 2, 3, 0))

"""Video sizes: buckets of about equal area for all aspect ratios, and the usual size of each architecture.

A *bucket* is a frame size `(height, width)` for the videos of one aspect ratio.
"""

from dataclasses import dataclass
from math import isqrt

from .geometry import SIDE_MULTIPLE

MAX_RATIO = 4.0


@dataclass(frozen=True)
class VideoSize:
    """A video's width and height in pixels, its length in frames (4n + 1), and its frame rate in frames per second."""

    width: int
    height: int
    frames: int
    fps: float


# The assumed training size of models without a recipe, by `Architecture.name`.
USUAL_SIZES = {
    "hunyuan_video": VideoSize(960, 544, 129, 24.0),
    "wan": VideoSize(832, 480, 81, 16.0),
}


def buckets(area: int, max_ratio: float = MAX_RATIO) -> list[tuple[int, int]]:
    """List the buckets `(height, width)` of about equal area: for each width, the largest height within the area.

    Both sides are multiples of 16 pixels. HunyuanVideo and Magic 1-For-1 sort their training videos into such buckets.

    Args:
        area: largest number of pixels per frame, such as 960 * 544.
        max_ratio: largest ratio of the longer side to the shorter side.

    Raises:
        ValueError: if the area is smaller than the smallest frame, 16 x 16.
    """
    if area < SIDE_MULTIPLE**2:
        raise ValueError(f"area is {area} pixels, expected at least {SIDE_MULTIPLE} x {SIDE_MULTIPLE}.")
    found = []
    for width in range(SIDE_MULTIPLE, isqrt(int(area * max_ratio)) + 1, SIDE_MULTIPLE):
        height = area // width // SIDE_MULTIPLE * SIDE_MULTIPLE
        if height and max(height, width) <= max_ratio * min(height, width):
            found.append((height, width))
    return found


def kept_share(rows: int, columns: int, height: int, width: int) -> float:
    """Return the share of a picture, from 0 to 1, that remains after it is cropped to another aspect ratio.

    Args:
        rows: height of the picture in pixels.
        columns: width of the picture in pixels.
        height: height of the size that sets the aspect ratio.
        width: width of the size that sets the aspect ratio.
    """
    return min(width * rows, height * columns) / max(width * rows, height * columns)


def best_bucket(rows: int, columns: int, area: int) -> tuple[int, int]:
    """Return the bucket `(height, width)` with the largest product of number of pixels and kept share of a picture.

    Args:
        rows: height of the picture in pixels.
        columns: width of the picture in pixels.
        area: see `buckets`.

    Raises:
        ValueError: see `buckets`.
    """
    return max(buckets(area), key=lambda side: kept_share(rows, columns, *side) * side[0] * side[1])

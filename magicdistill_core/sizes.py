"""Sizes of videos: buckets of one area for every aspect, and what a family is used to."""

from dataclasses import dataclass
from math import isqrt

from .geometry import SIDE_MULTIPLE

MAX_RATIO = 4.0


@dataclass(frozen=True)
class VideoSize:
    """A video's width and height in pixels, its length in frames (4n + 1), and its frames a second."""

    width: int
    height: int
    frames: int
    fps: float


# What models without a recipe are assumed to be trained on, by `Architecture.name`.
USUAL_SIZES = {
    "hunyuan_video": VideoSize(960, 544, 129, 24.0),
    "wan": VideoSize(832, 480, 81, 16.0),
}


def buckets(area: int, max_ratio: float = MAX_RATIO) -> list[tuple[int, int]]:
    """Every `(height, width)` of about one pixel area: for each width the largest height that stays within it.

    Both sides are multiples of 16. This is how HunyuanVideo and Magic 1-For-1 sort their training videos.

    Args:
        area: pixels of a frame, such as 960 * 544.
        max_ratio: of the longer side to the shorter.

    Raises:
        ValueError: if not even the smallest frame fits the area.
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
    """The share of a picture that is left when it is cut to the aspect of `height` and `width`."""
    return min(width * rows, height * columns) / max(width * rows, height * columns)


def best_bucket(rows: int, columns: int, area: int) -> tuple[int, int]:
    """The bucket `(height, width)` that keeps most of a picture and uses most of the area, both counted alike.

    Args:
        rows, columns: of the picture.
        area: as for `buckets`.
    """
    return max(buckets(area), key=lambda side: kept_share(rows, columns, *side) * side[0] * side[1])

"""Shots that look alike: copies of a video in another size, quality or container."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .manifest import Row

_BAND_BITS = 16
# Of pictures that all look alike, such as black ones, each is compared with so many others.
_MOST_COMPARED = 64


def copy_bits(rows: Sequence[Row]) -> list[float | None]:
    """Return for each shot by how many bits of 64 its hashes differ from those of the most similar better shot.

    The mean over the hashes of a shot counts. A shot is better if it has more pixels, or as many and lasts longer, or
    else if its name comes first. Shots of one video are not compared. Only shots with 16 equal bits at the same place
    of a hash are compared, which copies have.

    Args:
        rows: rows of shots.

    Returns:
        One value for each row; None if no better shot is similar.
    """
    found: list[float | None] = [None] * len(rows)
    order = sorted(
        (place for place, row in enumerate(rows) if row["hashes"]),
        key=lambda place: (
            -rows[place]["width"] * rows[place]["height"],
            -round(rows[place]["seconds"], 1),
            *(rows[place][name] for name in ("video", "shot")),
        ),
    )
    if not order:
        return found
    hashes = np.array([rows[place]["hashes"] for place in order], np.uint64)
    videos = np.unique([rows[place]["video"] for place in order], return_inverse=True)[1]
    best = np.full(len(order), np.inf)
    for column in range(hashes.shape[1]):
        for shift in range(0, 64, _BAND_BITS):
            band = (hashes[:, column] >> np.uint64(shift)) & np.uint64(2**_BAND_BITS - 1)
            _compare(band, hashes, videos, best)
    for number, place in enumerate(order):
        if np.isfinite(best[number]):
            found[place] = float(best[number])
    return found


def _compare(
    band: NDArray[np.uint64], hashes: NDArray[np.uint64], videos: NDArray[np.intp], best: NDArray[np.float64]
) -> None:
    """Lower `best` by the pairs with equal bands. The rows are in their order, the best first."""
    sequence = np.argsort(band, kind="stable")
    for step in range(1, _MOST_COMPARED + 1):
        better, worse = sequence[:-step], sequence[step:]
        same = (band[better] == band[worse]) & (videos[better] != videos[worse])
        if not (band[better] == band[worse]).any():
            return
        better, worse = better[same], worse[same]
        bits = np.bitwise_count(hashes[better] ^ hashes[worse]).mean(axis=1)
        np.minimum.at(best, worse, bits)

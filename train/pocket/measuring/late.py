"""The late frames of a clip, where samples are worst: a generator's errors grow with the distance from the image."""

import math


def last_third(frames: int) -> slice:
    """Return the last third of a clip: 6 of 17 frames.

    Args:
        frames: number of frames of the clip.
    """
    return slice(frames - math.ceil(frames / 3), frames)

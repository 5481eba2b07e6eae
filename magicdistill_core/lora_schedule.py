"""The strength of a LoRA at every step of a sampling."""

import math
import re
from collections.abc import Sequence

from .errors import ConfigError

STRENGTH_LIMIT = 10.0
_FULL_NOISE = 0.9999


def parse_strengths(text: str) -> list[float]:
    """Strengths as a person writes them, one a step, with commas or spaces between: `"1, 1, 0.5, 0"`.

    Raises:
        ConfigError: if there is none, or one is no number from -10 to 10.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and abs(value) <= STRENGTH_LIMIT for value in values):
        raise ConfigError(
            f"The strengths are {text!r}, expected one number a step, each from -{STRENGTH_LIMIT:g} to "
            f"{STRENGTH_LIMIT:g}, with commas between. Write for example 1, 1, 0.5, 0 (the last one is repeated)."
        )
    return values


def strength_at(strengths: Sequence[float], step: int) -> float:
    """The strength at a step, counted from 0; the last one is repeated."""
    return strengths[min(step, len(strengths) - 1)]


def step_at(sigma: float, sigmas: Sequence[float], steps: int) -> int | None:
    """Which step of the whole sampling a noise level belongs to, counted from 0: the one that begins nearest to it.

    Args:
        sigma: the level that the network is called at.
        sigmas: of the sampling that is going on, falling, one more than it has steps. One that begins below full
            noise and ends without any is the end of the whole; the schedule of the rest may be any.
        steps: of the whole.

    Returns:
        None for a piece from the middle, of which the levels do not tell how many steps were before it.
    """
    begun = sigmas[:-1]
    if sigmas[0] > _FULL_NOISE:
        before = 0
    elif sigmas[-1] == 0:
        before = max(0, steps - len(begun))
    else:
        return None
    return before + min(range(len(begun)), key=lambda step: abs(begun[step] - sigma))

"""The strength of a LoRA at each sampling step."""

import math
import re
from collections.abc import Sequence

from .errors import ConfigError

STRENGTH_LIMIT = 10.0
_FULL_NOISE = 0.9999


def parse_strengths(text: str) -> list[float]:
    """Return the strengths in a text, one per step, such as `"1, 1, 0.5, 0"`.

    Args:
        text: numbers separated by commas, semicolons or white space.

    Raises:
        ConfigError: if there is no strength, or one is not a number from -10 to 10.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and abs(value) <= STRENGTH_LIMIT for value in values):
        raise ConfigError(
            f"The strengths are {text!r}, expected one number per step, each from -{STRENGTH_LIMIT:g} to "
            f"{STRENGTH_LIMIT:g}, separated by commas. Write for example 1, 1, 0.5, 0. The last one is repeated if "
            f"there are more steps."
        )
    return values


def strength_at(strengths: Sequence[float], step: int) -> float:
    """Return the strength at a step. The last strength also holds for all later steps.

    Args:
        strengths: one strength per step, at least one.
        step: the step, counted from 0.
    """
    return strengths[min(step, len(strengths) - 1)]


def step_at(sigma: float, sigmas: Sequence[float], steps: int) -> int | None:
    """Return the step of a complete sampling to which a noise level belongs: the step with the nearest starting level.

    A sampling may be split over several samplers. Then `sigmas` holds only the levels of the current part. A part that
    starts at full noise is the beginning, and its first step is step 0. A part that starts below full noise and ends at
    sigma 0 is the end, and its last step is step `steps - 1`. The other parts may use any schedule.

    Args:
        sigma: the level of the current network call.
        sigmas: the levels of the current part, decreasing, one more than its number of steps.
        steps: number of steps of the complete sampling.

    Returns:
        The step, counted from 0. None for a part from the middle: its levels do not tell how many steps came before.
    """
    begun = sigmas[:-1]
    if sigmas[0] > _FULL_NOISE:
        before = 0
    elif sigmas[-1] == 0:
        before = max(0, steps - len(begun))
    else:
        return None
    return before + min(range(len(begun)), key=lambda step: abs(begun[step] - sigma))

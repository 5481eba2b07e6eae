"""The strength of a LoRA at every step of a sampling."""

import math
import re

from .errors import ConfigError

STRENGTH_LIMIT = 10.0


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


def strength_changes(strengths: list[float], steps: int) -> list[tuple[float, float]]:
    """When a strength begins to hold, as (part of the sampling from 0 to 1, strength); the last one holds to the end.

    A change stands half a step before the step that it is for: the noise level of a step is rounded, and comparing it
    with a boundary at the very same level would be a matter of luck.

    Args:
        strengths: one a step; those behind the last step are left out.
        steps: the number of steps, at least 1.
    """
    changes = [(0.0, strengths[0])]
    for step, strength in enumerate(strengths[1:steps], start=1):
        if strength != changes[-1][1]:
            changes.append(((step - 0.5) / steps, strength))
    return changes

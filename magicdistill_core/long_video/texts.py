"""What a user writes for single segments: one prompt per line, and `number: seed` lines."""

from collections.abc import Sequence

from ..errors import VideoError

MAX_SEED = 2**64 - 1


def numbered_lines(text: str) -> list[str]:
    """Return the prompts of a text.

    Args:
        text: one prompt per line. Empty lines at the end are ignored.

    Raises:
        VideoError: if another line is empty. The message names it.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise VideoError(
                f"Line {number} of the prompts is empty, but line {len(lines)} has text. Write the prompt of segment "
                f"{number} there, or delete the line."
            )
    return lines


def spread(values: Sequence[str], segments: int, name: str) -> list[str]:
    """Return one value per segment: the last one is repeated.

    Args:
        values: the values of the first segments; none returns none.
        segments: number of segments.
        name: what the values are, for messages.

    Raises:
        VideoError: if there are more values than segments.
    """
    if len(values) > segments:
        raise VideoError(
            f"There are {len(values)} {name}, but the video has {segments} segment{'s' if segments > 1 else ''}: "
            f"number {segments + 1} ({values[segments][:60]!r}) would never be used. Delete it, or make the video "
            f"longer."
        )
    return [*values, *[values[-1]] * (segments - len(values))] if values else []


def seed_lines(lines: Sequence[str], segments: int) -> dict[int, int]:
    """Return the seeds that a user sets for single segments, by the number of the segment from 0.

    Args:
        lines: lines such as `3: 42` or `3=42`, with segments counted from 1. Empty lines are ignored.
        segments: number of segments.

    Raises:
        VideoError: if a line has another form, or names a segment that does not exist or was named before.
    """
    seeds: dict[int, int] = {}
    for line in lines:
        if not line.strip():
            continue
        number, separator, seed = line.replace("=", ":").partition(":")
        if not separator or not number.strip().isdecimal() or not seed.strip().isdecimal() or int(seed) > MAX_SEED:
            raise VideoError(
                f"{line.strip()!r} is no seed of a segment, expected the segment's number and its seed, such as 3: 42. "
                f"A seed is a whole number from 0 to 2^64 - 1."
            )
        place = int(number) - 1
        if not 0 <= place < segments or place in seeds:
            problem = "is named twice" if place in seeds else f"does not exist: the video has {segments}"
            raise VideoError(f"{line.strip()!r}: segment {number.strip()} {problem}. Correct or delete the line.")
        seeds[place] = int(seed)
    return seeds

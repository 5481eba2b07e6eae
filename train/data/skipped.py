"""Skipped videos, counted by reason."""

import re
from collections import defaultdict
from collections.abc import Mapping

_NAMED = 3


def by_reason(skipped: Mapping[str, str]) -> list[str]:
    """Count skipped videos by reason, the most frequent first. Reasons that differ only in names and numbers are one.

    Args:
        skipped: the reason of each video, by the video's name.

    Returns:
        One text per reason: the number of videos, the names of some, and the reason of the first one.
    """
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in skipped.items():
        # The reason contains the path, which ends with the name.
        kind = re.sub(rf"\S*{re.escape(name)}", "", reason)
        names[re.sub(r"\d[\d.,]*", "", kind)].append(name)
    texts = []
    for group in sorted(names.values(), key=len, reverse=True):
        more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
        count = "1 video" if len(group) == 1 else f"{len(group)} videos"
        texts.append(f"{count} ({', '.join(group[:_NAMED])}{more}): {skipped[group[0]]}")
    return texts

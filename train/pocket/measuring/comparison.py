"""Comparisons of models by one measure, with intervals over clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.metrics.bootstrap import Interval, bootstrap


@dataclass(frozen=True)
class Comparison:
    """A measure of one contender.

    Attributes:
        value: its mean over clips with a 95 % interval.
        differences: its mean difference from each baseline on the same clips, with 95 % intervals. Baselines differ
            from themselves by nothing and are left out.
    """

    value: Interval
    differences: dict[str, Interval]


def compare(values: Mapping[str, Tensor], baselines: Sequence[str]) -> dict[str, Comparison]:
    """Compare contenders by one measure, with intervals from a bootstrap over clips.

    Args:
        values: for each contender the measure of each clip, `[N]`; the same clips for all.
        baselines: names of contenders from which differences are computed.
    """

    def interval(of: Tensor) -> Interval:
        # All intervals resample the same clips.
        return bootstrap(of, torch.Generator().manual_seed(0))

    return {
        name: Comparison(
            interval(of),
            {other: interval(of - values[other]) for other in baselines if other != name},
        )
        for name, of in values.items()
    }


def shown_interval(interval: Interval) -> str:
    """Return an interval as text: the mean, and both ends in brackets."""
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        heads: the heads of the columns.
        lines: the cells of each row.
    """
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

"""The plots of a run's report."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.run import GuardConfig
from .guard import RULES, WATCHED

Rows = Sequence[dict[str, Any]]

_COLUMNS, _SMOOTHED = 3, 20
# A curve of the update's number or duration is not informative.
_NOT_DRAWN = ("step", "seconds")


def plot_losses(rows: Rows, abandoned: Rows, path: Path) -> None:
    """Plot all metrics that the guard does not watch, such as losses and gradient norms.

    Args:
        rows: metrics of the updates that count, one row per update; at least one.
        abandoned: metrics of the updates that rollbacks dropped.
        path: the PNG file to write.
    """
    names = [name for name in rows[-1] if name not in (*_NOT_DRAWN, *WATCHED) and not name.startswith("guard/")]
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        _curve(axis, rows, abandoned, name)
    figure.savefig(path, dpi=100)


def plot_guard(rows: Rows, abandoned: Rows, guard: GuardConfig, path: Path) -> bool:
    """Plot the quantities that the guard watches, with their limits.

    Args:
        rows: metrics of the updates that count, one row per update; at least one.
        abandoned: metrics of the updates that rollbacks dropped.
        guard: the limits.
        path: the PNG file to write.

    Returns:
        Whether the run logs such a quantity. If not, no file is written.
    """
    names = [name for name in WATCHED if name in rows[-1]]
    if not names:
        return False
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        _curve(axis, rows, abandoned, name)
        first = [row[name] for row in rows[guard.warmup : guard.warmup + guard.window] if name in row]
        has_baseline = len(rows) >= guard.warmup + guard.window
        for rule in (rule for rule in RULES if rule.metric == name and (has_baseline or not rule.relative)):
            limit = getattr(guard, rule.limit) * (median(first) if rule.relative else 1.0)
            axis.axhline(limit, color="tab:red", linewidth=1, linestyle="--", label="limit")
    figure.savefig(path, dpi=100)
    return True


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(4.5 * _COLUMNS, 2.6 * rows), layout="constrained")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    axes = list(cells)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _curve(axis: Axes, rows: Rows, abandoned: Rows, name: str) -> None:
    steps = [row["step"] for row in rows if name in row]
    values = [row[name] for row in rows if name in row]
    window = min(_SMOOTHED, max(len(values) // 4, 1))
    smooth = [median(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    axis.plot(steps, values, color="tab:blue", linewidth=0.7, alpha=0.5)
    axis.plot(steps, smooth, color="tab:blue", linewidth=1.8)
    lost = [(row["step"], row[name]) for row in abandoned if name in row]
    if lost:
        axis.plot(*zip(*lost, strict=True), color="tab:orange", linewidth=1, linestyle=":")
    axis.set_title(name, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)

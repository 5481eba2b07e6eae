"""The plots of a run's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..config.run import GuardConfig
from .guard import RULES, WATCHED

Rows = Sequence[dict[str, Any]]
Array = NDArray[np.float64]

_COLUMNS, _SMOOTHED = 3, 20
# A longer curve is drawn with this number of intervals: more than a plot has pixels.
_INTERVALS = 1000
# A curve of the update's number or duration is not informative.
_NOT_DRAWN = ("step", "seconds")


def plot_losses(rows: Rows, abandoned: Rows, path: Path) -> bool:
    """Plot all metrics that the guard does not watch, such as losses and gradient norms.

    Args:
        rows: metrics of the rounds that count, one row per round; at least one.
        abandoned: metrics of the rounds that rollbacks dropped.
        path: the PNG file to write.

    Returns:
        Whether the run logs such a metric. If not, no file is written.
    """
    # Some metrics are measured at intervals only.
    logged = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in logged if name not in (*_NOT_DRAWN, *WATCHED) and not name.startswith("guard/")]
    if not names:
        return False
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        _curve(axis, rows, abandoned, name)
    figure.savefig(path, dpi=100)
    return True


def plot_guard(rows: Rows, abandoned: Rows, guard: GuardConfig, path: Path) -> bool:
    """Plot the quantities that the guard watches, with their limits.

    Args:
        rows: metrics of the rounds that count, one row per round; at least one. The limits are drawn from those with
            an update of the generator.
        abandoned: metrics of the rounds that rollbacks dropped.
        guard: the limits.
        path: the PNG file to write.

    Returns:
        Whether the run logs such a quantity. If not, no file is written.
    """
    updates = [row for row in rows if row["step"] > 0]
    names = [name for name in WATCHED if name in rows[-1]]
    if not names:
        return False
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        _curve(axis, rows, abandoned, name)
        first = _values(updates[guard.warmup : guard.warmup + guard.window], name)[1]
        has_baseline = len(updates) >= guard.warmup + guard.window and np.isfinite(first).any()
        for rule in (rule for rule in RULES if rule.metric == name and (has_baseline or not rule.relative)):
            limit = getattr(guard, rule.limit) * (float(np.nanmedian(first)) if rule.relative else 1.0)
            axis.axhline(limit, color="tab:red", linewidth=1, linestyle="--", label="limit")
    figure.savefig(path, dpi=100)
    return True


def plot_validation(rows: Rows, best: int | None, path: Path) -> None:
    """Plot the difference of the energy score from the run's start, with 95 % intervals.

    Args:
        rows: one row per validation; at least one. Without a standard error a point has no interval.
        best: update of the best checkpoint; None if there is none.
        path: the PNG file to write.
    """
    steps, values = _values(rows, "validation/difference")
    errors = 1.96 * np.nan_to_num(np.array([row.get("validation/standard_error", 0.0) for row in rows], dtype=float))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.errorbar(steps, values, errors, color="tab:blue", marker="o", markersize=4, capsize=3)
    axis.axhline(0, color="grey", linewidth=1, linestyle="--")
    if best in steps:
        chosen, label = steps == best, f"best checkpoint, update {best}"
        axis.plot(steps[chosen], values[chosen], "o", color="tab:green", markersize=9, label=label)
        axis.legend(fontsize=8)
    axis.set_title("energy score of the validation, minus that of the start", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(4.5 * _COLUMNS, 2.6 * rows), layout="constrained")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    axes = list(cells)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _curve(axis: Axes, rows: Rows, abandoned: Rows, name: str) -> None:
    steps, values = _values(rows, name)
    smooth = running_median(values, min(_SMOOTHED, max(len(values) // 4, 1)))
    axis.plot(*extremes(steps, values), color="tab:blue", linewidth=0.7, alpha=0.5)
    every = max(len(steps) // _INTERVALS, 1)
    axis.plot(steps[::every], smooth[::every], color="tab:blue", linewidth=1.8)
    lost, lost_values = _values(abandoned, name)
    if len(lost):
        axis.plot(lost, lost_values, color="tab:orange", linewidth=1, linestyle=":")
    axis.set_title(name, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _values(rows: Rows, name: str) -> tuple[Array, Array]:
    """Return the updates that log a metric, and its values; a value that is not finite is NaN, which is not drawn."""
    having = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in having], dtype=float)
    values = np.array([row[name] for row in having], dtype=float)
    return steps, np.where(np.isfinite(values), values, np.nan)


def running_median(values: Array, window: int) -> Array:
    """Return the median of each value and the `window - 1` values before it, as far as there are any.

    Args:
        values: `[N]`; NaN is left out.
        window: number of values in a median.
    """
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    ordered = np.sort(windows, axis=1)  # NaN is sorted to the end
    count = np.isfinite(windows).sum(axis=1)
    last = np.maximum(count - 1, 0)
    places = np.arange(len(ordered))
    return (ordered[places, last // 2] + ordered[places, (last + 1) // 2]) / 2


def extremes(steps: Array, values: Array) -> tuple[Array, Array]:
    """Return a curve that looks the same with fewer points: the lowest and the highest value of every interval.

    Args:
        steps: `[N]`, ascending.
        values: `[N]`; NaN where there is no value.
    """
    size = len(steps) // _INTERVALS
    if size < 4:
        return steps, values
    whole = len(steps) // size * size
    pieces = values[:whole].reshape(-1, size)
    low, high = np.where(np.isnan(pieces), np.inf, pieces).min(1), np.where(np.isnan(pieces), -np.inf, pieces).max(1)
    pairs = np.stack([low, high], axis=1)
    found = np.where(np.isfinite(pairs), pairs, np.nan).reshape(-1)
    return np.append(np.repeat(steps[:whole:size], 2), steps[whole:]), np.append(found, values[whole:])

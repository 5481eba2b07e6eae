"""Plots of curves over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..summary import ScoredVideo

TITLES = {
    "sharpness": "sharpness (levels)",
    "contrast": "contrast (levels)",
    "red": "red (levels)",
    "blue": "blue (levels)",
    "motion": "motion (levels a frame)",
    "lpips_start": "LPIPS to the start image",
    "identity_distance": "identity distance (dlib)",
    "subject": "cosine to the first frame (DINO)",
    "eyes": "opening of the eyes",
    "mouth": "opening of the mouth",
    "imaging_quality": "imaging quality",
    "aesthetic_quality": "aesthetic quality",
    "lpips": "LPIPS to the reference",
    "psnr": "PSNR (dB)",
    "expression_distance": "expression distance",
}
# Without these, a mean over videos shows nothing: blinks of different videos are at different times.
_ONLY_SINGLE = {"eyes", "mouth"}
_COLUMNS, _POINTS = 3, 400


def plot_means(videos: Mapping[str, Sequence[ScoredVideo]], path: Path) -> bool:
    """Plot the mean curve of each folder, with single videos behind it if there are few.

    Args:
        videos: the videos by folder.
        path: the PNG file to write.

    Returns:
        Whether there is a curve. If not, no file is written.
    """
    names = [
        name
        for name in TITLES
        if name not in _ONLY_SINGLE and any(video.curve(name)[0] for some in videos.values() for video in some)
    ]
    if not names:
        return False
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        for number, some in enumerate(videos.values()):
            curves = [video.curve(name) for video in some if video.curve(name)[0]]
            colour = f"C{number}"
            if len(curves) <= 12:
                for curve, rate in curves:
                    axis.plot(np.arange(len(curve)) / rate, curve, color=colour, linewidth=0.5, alpha=0.35)
            if curves:
                axis.plot(*_mean(curves), color=colour, linewidth=2)
        axis.set_title(TITLES[name], fontsize=10)
    _finish(figure, axes, list(videos))
    figure.savefig(path, dpi=90)
    return True


def plot_videos(videos: Mapping[str, ScoredVideo], path: Path) -> bool:
    """Plot the curves of the videos of one start image.

    Args:
        videos: one video by folder.
        path: the PNG file to write.

    Returns:
        Whether there is a curve. If not, no file is written.
    """
    names = [name for name in TITLES if any(video.curve(name)[0] for video in videos.values())]
    if not names:
        return False
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        for number, video in enumerate(videos.values()):
            curve, rate = video.curve(name)
            if curve:
                axis.plot(np.arange(len(curve)) / rate, curve, color=f"C{number}", linewidth=1.2)
        axis.set_title(TITLES[name], fontsize=10)
    _finish(figure, axes, list(videos))
    figure.savefig(path, dpi=80)
    return True


def _mean(curves: Sequence[tuple[list[float], float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return times and the mean of curves where at least half of them go on."""
    lengths = sorted(len(curve) / rate for curve, rate in curves)
    times = np.linspace(0, lengths[len(lengths) // 2], _POINTS)
    rows = [
        np.interp(times, np.arange(len(curve)) / rate, np.array(curve, dtype=float), right=np.nan)
        for curve, rate in curves
    ]
    stacked = np.array(rows)
    counted = np.isfinite(stacked)
    sums = np.where(counted, stacked, 0).sum(0)
    return times, np.where(counted.any(0), sums / np.maximum(counted.sum(0), 1), np.nan)


def _grid(count: int) -> tuple[Figure, list]:
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.3 * columns, 2.4 * rows + 0.5), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in cells[count:]:
        unused.set_visible(False)
    return figure, cells[:count]


def _finish(figure: Figure, axes: Sequence, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    for axis in axes:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.set_xlabel("s", fontsize=8, loc="right", labelpad=0)
    lines = [Line2D([], [], color=f"C{number}", linewidth=2) for number in range(len(names))]
    figure.legend(lines, list(names), loc="outside upper left", ncols=min(len(names), 6), fontsize=9, frameon=False)

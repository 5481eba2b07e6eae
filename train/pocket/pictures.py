"""Contact sheets and loss curves of the pocket trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor


def save_strips(path: Path, clips: Sequence[Tensor], every: int = 2, scale: int = 1) -> None:
    """One row per clip (float ``[T, 3, H, W]`` in [0, 1]), every ``every``-th frame, written as PNG or JPEG."""
    rows = [np.concatenate(list(_to_uint8(clip[::every])), axis=1) for clip in clips]
    picture = Image.fromarray(np.concatenate(rows, axis=0))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90)


def _to_uint8(clip: Tensor) -> np.ndarray:
    return (clip.float().clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy()


def plot_losses(log: Path, picture: Path, names: Sequence[str], smoothing: float = 0.98) -> None:
    """Plot the named columns of a loss log, smoothed, over steps; values (rarer) are drawn as points if alone."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.0), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if not points:
            continue
        steps, values = np.asarray(points).T
        if len(points) < 0.2 * len(rows):
            axis.plot(steps, values, "o-", markersize=3)
        else:
            axis.plot(steps, _smooth(values, smoothing), linewidth=1)
            if values.min() > 0:
                axis.set_yscale("log")
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def _smooth(values: np.ndarray, memory: float) -> np.ndarray:
    """Exponential moving average with bias correction."""
    smoothed, mean = np.empty_like(values), 0.0
    for index, value in enumerate(values):
        mean = memory * mean + (1 - memory) * value
        smoothed[index] = mean / (1 - memory ** (index + 1))
    return smoothed

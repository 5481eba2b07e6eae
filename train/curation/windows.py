"""The windows of shots: inside the shot, with the face in every sample, cropped around it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magicdistill_core.media.video import Box, ShownFrame, crop_region, read_runs, resize_crop

from ..data.windows import WindowGeometry
from .manifest import Row
from .samples import SAMPLE_SECONDS

# The largest factor by which a crop is enlarged. Enlarged pictures teach a model to blur.
MOST_ENLARGED = 1.25
# The part of each face that must be in the crop, in width and in height.
_LEAST_INSIDE = 0.9


@dataclass(frozen=True)
class Crop:
    """How the frames of a window are cropped: first the part inside black bars, then the region around the face.

    Attributes:
        top, left, rows, columns: the part inside black bars, in pixels.
        face: the usual place of the face in it.
    """

    top: int
    left: int
    rows: int
    columns: int
    face: Box

    def apply(self, frame: Tensor, geometry: WindowGeometry) -> Tensor:
        """Return the cropped and resized frame.

        Args:
            frame: `[H, W, 3]`, uint8.
            geometry: the size of the result.
        """
        inside = frame[self.top : self.top + self.rows, self.left : self.left + self.columns]
        return resize_crop(inside, geometry.height, geometry.width, self.face)


@dataclass(frozen=True)
class ShotPlan:
    """A shot that is cut into windows.

    Attributes:
        row: the shot's row in the manifest.
        geometry: the size of its windows.
    """

    row: Row
    geometry: WindowGeometry

    def crop(self, time: float) -> Crop | None:
        """Return the crop of the window that begins at a time; None if not all of it shows the face.

        Args:
            time: seconds from the file's beginning.
        """
        row, geometry = self.row, self.geometry
        end = time + (geometry.frames - 1) / geometry.fps
        if end > row["end"]:
            return None
        samples = [s for s in row["samples"] if time - SAMPLE_SECONDS < s["time"] < end + SAMPLE_SECONDS]
        if not samples or any(sample["x"] is None for sample in samples):
            return None
        top, left, rows, columns = _inside(row)
        boxes = np.array([[s[side] for side in ("x", "y", "width", "height")] for s in samples], np.float64)
        boxes = boxes * ([row["width"], row["height"]] * 2) - [left, top, 0, 0]
        face = Box(*(float(value) for value in np.median(boxes, axis=0)))
        crop_top, crop_left, crop_rows, crop_columns = crop_region(rows, columns, geometry.height, geometry.width, face)
        for x, y, width, height in boxes:
            across = min(x + width, crop_left + crop_columns) - max(x, crop_left)
            along = min(y + height, crop_top + crop_rows) - max(y, crop_top)
            if across < _LEAST_INSIDE * width or along < _LEAST_INSIDE * height:
                return None
        return Crop(top, left, rows, columns, face)


def choose_geometry(row: Row, geometries: Sequence[WindowGeometry]) -> WindowGeometry | None:
    """Return the size of windows for a shot: the nearest aspect ratio, and then the longest that fits.

    Args:
        row: the shot.
        geometries: the sizes to choose from.

    Returns:
        None if the shot is too short or too small for all of them.
    """
    _, _, rows, columns = _inside(row)
    possible = []
    for geometry in geometries:
        _, _, crop_rows, _ = crop_region(rows, columns, geometry.height, geometry.width)
        long_enough = row["seconds"] >= geometry.frames / geometry.fps - 1e-6
        if long_enough and geometry.height <= MOST_ENLARGED * crop_rows:
            off = abs(np.log(columns / rows) - np.log(geometry.width / geometry.height))
            possible.append((round(float(off), 6), -geometry.frames, -geometry.height, geometry))
    return min(possible, key=lambda entry: entry[:3])[3] if possible else None


def _inside(row: Row) -> tuple[int, int, int, int]:
    """Return the part of the frame inside black bars: first row, first column, rows and columns in pixels."""
    height, width = row["height"], row["width"]
    # The bars were measured in a reduced frame, so one of its pixels more is cut off.
    margin = 2 if row["bars"] > 0 else 0
    edges = [
        round(row["top"] * height) + (margin if row["top"] > 0 else 0),
        round(row["left"] * width) + (margin if row["left"] > 0 else 0),
        round(row["bottom"] * height) - (margin if row["bottom"] < 1 else 0),
        round(row["right"] * width) - (margin if row["right"] < 1 else 0),
    ]
    top, left, bottom, right = edges
    return top, left, max(1, bottom - top), max(1, right - left)


def shot_windows(path: Path, plans: Sequence[ShotPlan]) -> Iterator[tuple[int, ShotPlan, Tensor]]:
    """Yield the windows of the shots of one video, one after another and without overlap.

    A window begins as early as it can: where the face is in all samples until its end.

    Args:
        path: the video.
        plans: its shots in their order; all have one frame rate.

    Yields:
        The number of the window's first frame after resampling, its shot, and its frames `[T, H, W, 3]` in uint8.

    Raises:
        VideoError: if the video is unreadable or damaged.
    """
    buffer: list[Tensor] = []
    sources: list[int] = []
    current: tuple[int, ShotPlan | None] = (-1, None)
    crop: Crop | None = None
    for number, frame in enumerate(read_runs(path, plans[0].geometry.fps).frames):
        plan = _plan_of(frame, plans)
        if (frame.run, plan) != current:
            buffer, sources, current = [], [], (frame.run, plan)
        if plan is None:
            continue
        if not buffer:
            crop = plan.crop(frame.time)
        if crop is None:
            continue
        # A repeated frame is resized once.
        repeated = bool(sources) and sources[-1] == frame.source
        buffer.append(buffer[-1] if repeated else crop.apply(frame.pixels, plan.geometry))
        sources.append(frame.source)
        if len(buffer) == plan.geometry.frames:
            if sources[0] != sources[-1] or len(sources) == 1:
                yield number - len(buffer) + 1, plan, torch.stack(buffer)
            buffer, sources = [], []


def _plan_of(frame: ShownFrame, plans: Sequence[ShotPlan]) -> ShotPlan | None:
    return next((plan for plan in plans if plan.row["first"] <= frame.source <= plan.row["last"]), None)

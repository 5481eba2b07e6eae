"""Measures of single frames, and of two frames that follow each other. All work on small pictures."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .faces import Face

Frame = NDArray[np.uint8]

_SHORTER_SIDE, _TEXT_SIDE = 240, 540
_FACE_ROWS = 128
_DARK, _BRIGHT = 16, 250
# A black bar: its brightest pixels are still this dark. Encoders leave noise in it.
_BAR_MEAN, _BAR_PEAK = 14, 40
# Pictures that stand side by side have borders at these shares of the width (or of the height, if they stand on top of
# each other).
_PARTS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
_BORDER_CONTRAST = 6.0
_STROKE_CONTRAST = 90
_LETTER_GAPS = (7, 15, 31)
_FEATURES, _LEAST_FEATURES = 120, 8


class Content(NamedTuple):
    """The part of a frame inside its black bars, as shares of width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class SmallFrame:
    """A frame reduced to 240 pixels on its shorter side.

    Attributes:
        rgb: `[h, w, 3]`.
        grey: `[h, w]`.
    """

    rgb: Frame
    grey: Frame


def small_frame(frame: Frame) -> SmallFrame:
    """Reduce a frame.

    Args:
        frame: `[H, W, 3]` in RGB.
    """
    rgb = _reduced(frame, _SHORTER_SIDE)
    return SmallFrame(rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def text_frame(frame: Frame) -> Frame:
    """Return a frame in grey for `text`.

    Args:
        frame: `[H, W, 3]` in RGB.
    """
    return cv2.cvtColor(_reduced(frame, _TEXT_SIDE), cv2.COLOR_RGB2GRAY)


def _reduced(frame: Frame, side: int) -> Frame:
    rows, columns = frame.shape[:2]
    shrink = side / min(rows, columns)
    if shrink >= 1:
        return frame
    size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def face_crop(frame: Frame, face: Face) -> Frame:
    """Return the grey face at a height of 128 pixels.

    Args:
        frame: the complete frame `[H, W, 3]` in RGB.
        face: the face in it.
    """
    rows, columns = frame.shape[:2]
    top, left = max(0, int(face.y * rows)), max(0, int(face.x * columns))
    crop = frame[top : max(top + 1, int((face.y + face.height) * rows)), left:]
    crop = crop[:, : max(1, int(face.width * columns))]
    grey = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    size = (max(1, round(grey.shape[1] * _FACE_ROWS / grey.shape[0])), _FACE_ROWS)
    smaller = grey.shape[0] > _FACE_ROWS
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def sharpness(grey: Frame) -> float:
    """Return how much of a picture's contrast is fine detail: deviation of its Laplacian over its own deviation.

    Args:
        grey: `[h, w]`. A picture without contrast has the sharpness 0.
    """
    spread = float(grey.std())
    return float(cv2.Laplacian(grey, cv2.CV_64F).std()) / spread if spread > 1 else 0.0


def exposure(grey: Frame) -> tuple[float, float, float]:
    """Return the mean brightness, and the shares of pixels that are black and white, all in [0, 1].

    Args:
        grey: `[h, w]`.
    """
    return float(grey.mean()) / 255, float((grey < _DARK).mean()), float((grey > _BRIGHT).mean())


def content(grey: Frame) -> Content:
    """Return the part of a frame without black bars at its borders.

    Args:
        grey: `[h, w]`.
    """
    edges = []
    for axis in (1, 0):
        bar = (grey.mean(axis=axis) < _BAR_MEAN) & (np.percentile(grey, 98, axis=axis) < _BAR_PEAK)
        inside = np.flatnonzero(~bar)
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, len(bar))
        edges.append((float(first) / len(bar), float(last) / len(bar)))
    (top, bottom), (left, right) = edges
    return Content(left, top, right, bottom)


def joined(grey: Frame) -> float:
    """Return how clearly a frame is made of pictures side by side, or on top of each other.

    Between two pictures there is a straight border through the whole frame, at a half, a third or a quarter of it.

    Args:
        grey: `[h, w]`.

    Returns:
        The share of a line's pixels at which the frame changes more than next to the line; for the clearest line.
    """
    found = 0.0
    for picture in (grey, grey.T):
        change = np.abs(np.diff(picture.astype(np.float32), axis=1))
        columns = change.shape[1]
        for part in _PARTS:
            middle, reach = round(part * picture.shape[1]), max(2, round(0.012 * columns))
            if middle - 6 - reach < 0 or middle + 6 + reach > columns:
                continue
            beside = (change[:, middle - 6 - reach : middle - reach], change[:, middle + reach : middle + 6 + reach])
            usual = np.concatenate(beside, axis=1).mean(axis=1)
            sharp = change[:, middle - reach : middle + reach] > np.maximum(_BORDER_CONTRAST, 2 * usual)[:, None]
            # The border may be a line of two pixels.
            pairs = sharp[:, :-1] | sharp[:, 1:]
            found = max(found, float(pairs.mean(axis=0).max()))
    return found


def text(grey: Frame) -> float:
    """Return the share of a frame that looks like lines of printed text.

    Letters are strokes of strong contrast, close to each other, in rows of one height. Letters of less than about 4 %
    of the frame's shorter side are mostly missed.

    Args:
        grey: `[h, w]`, with about 540 pixels on its shorter side (`text_frame`).
    """
    rows, columns = grey.shape
    stroke = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges = (stroke > _STROKE_CONTRAST).astype(np.uint8)
    covered = np.zeros((rows, columns), bool)
    for gap in _LETTER_GAPS:
        lines = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((1, gap), np.uint8))
        lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((5, gap), np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(lines, connectivity=4)
        for x, y, width, height, area in stats[1:]:
            if not 6 <= height <= 0.12 * rows or width < 4 * height or area < 0.55 * width * height:
                continue
            inside = edges[y : y + height, x : x + width]
            middle = inside[height // 4 : max(height // 4 + 1, 3 * height // 4)].astype(np.int8)
            strokes = (np.diff(middle, axis=1) == 1).sum(axis=1).mean()
            # A letter has two strokes, and is about half as wide as high.
            if strokes >= width / height and 0.2 < inside.mean() < 0.9:
                covered[y : y + height, x : x + width] = True
    return float(covered.mean())


def camera_shift(before: SmallFrame, now: SmallFrame, face: Face | None) -> float:
    """Return how far the background moved between two frames, as a share of the frame's width.

    Args:
        before: a frame.
        now: a later one.
        face: the face in the first frame; the columns of the body below and beside it are left out.

    Returns:
        The median movement of points of the background; 0 if it shows no points, like a plain wall.
    """
    rows, columns = before.grey.shape
    mask = np.full((rows, columns), 255, np.uint8)
    if face is not None:
        left, right = face.x - 0.8 * face.width, face.x + 1.8 * face.width
        top = max(0, int((face.y - 0.6 * face.height) * rows))
        mask[top:, max(0, int(left * columns)) : max(0, int(right * columns))] = 0
    points = cv2.goodFeaturesToTrack(before.grey, _FEATURES, 0.02, 6, mask=mask)
    if points is None or len(points) < _LEAST_FEATURES:
        return 0.0
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before.grey, now.grey, points, None)
    kept = found.ravel() == 1
    if kept.sum() < _LEAST_FEATURES:
        return 0.0
    steps = np.linalg.norm((moved - points).reshape(-1, 2)[kept], axis=1)
    return float(np.median(steps)) / columns


def face_shift(before: Face, now: Face, aspect: float) -> float:
    """Return how far the landmarks of a face moved between two frames, in heights of the face.

    Args:
        before: a face.
        now: the same face later.
        aspect: width of the frame divided by its height.
    """
    steps = (now.points - before.points) * (aspect, 1.0)
    return float(np.linalg.norm(steps, axis=1).mean()) / max(before.height, 1e-6)


def fingerprint(frame: SmallFrame, inside: Content) -> int:
    """Return the perceptual hash of a frame (OpenCV's pHash of 64 bits), without its black bars.

    Args:
        frame: the frame.
        inside: its part without bars.
    """
    rows, columns = frame.grey.shape
    part = frame.grey[
        round(inside.top * rows) : max(round(inside.top * rows) + 1, round(inside.bottom * rows)),
        round(inside.left * columns) : max(round(inside.left * columns) + 1, round(inside.right * columns)),
    ]
    return int.from_bytes(cv2.img_hash.pHash(np.ascontiguousarray(part)).tobytes(), "big")

"""Faces in frames, found by MediaPipe's face landmarker."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from magicdistill_core.errors import cause

from .packages import CurationError, require

Frame = NDArray[np.uint8]
# The detector sees a picture of 192 pixels, and finds faces that are larger than about a tenth of it.
_MOST_FACES = 4
_LONGEST_SIDE = 720
# A frame without a face is searched again in squares, if it is so much longer than wide, or the reverse.
_TILED_FROM = 1.2
_CONFIDENCE = 0.5


class Face(NamedTuple):
    """A face in a frame, from the chin to the hairline. All lengths are shares of the frame's width or height.

    Attributes:
        x: left edge.
        y: upper edge.
        width: extent to the right.
        height: extent downwards.
        points: landmarks `[N, 2]`, in the same order for every face.
    """

    x: float
    y: float
    width: float
    height: float
    points: NDArray[np.float32]

    @property
    def area(self) -> float:
        """The share of the frame that the face covers."""
        return self.width * self.height


class FaceDetector(Protocol):
    """Finds the faces of a frame."""

    def find(self, frame: Frame, /) -> list[Face]:
        """Return the faces of a frame `[H, W, 3]` in RGB, the largest first."""


class MediaPipeFaces:
    """MediaPipe's face landmarker."""

    def __init__(self, model: Path) -> None:
        """Load the network.

        Args:
            model: the file `face_landmarker.task`.

        Raises:
            CurationError: if a package is missing, or the file is missing or no face landmarker.
        """
        require("cv2", "mediapipe")
        if not model.is_file():
            raise CurationError(f"The face landmarker {model} does not exist. {_ADVICE}")
        import mediapipe
        from mediapipe.tasks.python import vision

        options = vision.FaceLandmarkerOptions(
            base_options=mediapipe.tasks.BaseOptions(model_asset_buffer=model.read_bytes()),
            num_faces=_MOST_FACES,
            min_face_detection_confidence=_CONFIDENCE,
        )
        try:
            self._network: Any = vision.FaceLandmarker.create_from_options(options)
        except Exception as error:  # MediaPipe raises RuntimeError and ValueError
            raise CurationError(f"{model} is no face landmarker ({cause(error)}). {_ADVICE}") from error
        self._image, self._format = mediapipe.Image, mediapipe.ImageFormat.SRGB

    def close(self) -> None:
        """Free the network. MediaPipe fails if it does so itself while Python ends."""
        self._network.close()

    def find(self, frame: Frame, /) -> list[Face]:
        """Return the faces of a frame, the largest first. Small faces are found only in long frames, in their squares.

        Args:
            frame: `[H, W, 3]` in RGB.
        """
        import cv2

        rows, columns = frame.shape[:2]
        shrink = _LONGEST_SIDE / max(rows, columns)
        if shrink < 1:
            size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            rows, columns = frame.shape[:2]
        faces = self._found(frame, 0, 0, rows, columns)
        if not faces and max(rows, columns) > _TILED_FROM * min(rows, columns):
            side = min(rows, columns)
            count = -(-2 * max(rows, columns) // side) - 1
            for number in range(count):
                start = round(number * (max(rows, columns) - side) / max(1, count - 1))
                top, left = (start, 0) if rows > columns else (0, start)
                tile = np.ascontiguousarray(frame[top : top + side, left : left + side])
                for face in self._found(tile, left, top, rows, columns):
                    if not any(overlap(face, other) > 0.3 for other in faces):
                        faces.append(face)
        return sorted(faces, key=lambda face: -face.area)

    def _found(self, picture: Frame, left: int, top: int, rows: int, columns: int) -> list[Face]:
        result = self._network.detect(self._image(image_format=self._format, data=picture))
        height, width = picture.shape[:2]
        faces = []
        for landmarks in result.face_landmarks:
            marks = np.array([(mark.x, mark.y) for mark in landmarks])
            points = (marks * (width, height) + (left, top)) / (columns, rows)
            (x, y), (right, bottom) = points.min(0), points.max(0)
            faces.append(Face(float(x), float(y), float(right - x), float(bottom - y), points.astype(np.float32)))
        return faces


_ADVICE = (
    "Download face_landmarker.task from MediaPipe's page of models (Face landmark detection), and name it with --faces."
)


def overlap(one: Face, other: Face) -> float:
    """Return the intersection of two faces divided by their union, from 0 to 1.

    Args:
        one: a face.
        other: a face, maybe of another frame of the same size.
    """
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    common = max(0.0, width) * max(0.0, height)
    return common / max(one.area + other.area - common, 1e-9)

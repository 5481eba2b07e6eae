"""MediaPipe's face landmarker: landmarks, blendshapes and head pose of each frame."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MOST_FACES = 2
# Places in MediaPipe's mesh of 478 points. Eyes: outer and inner corner, then two points above and the two below them.
RIGHT_EYE = (33, 133, 160, 158, 144, 153)
LEFT_EYE = (263, 362, 387, 385, 373, 380)
_LIPS, _MOUTH_CORNERS = (13, 14), (78, 308)
_FACE_HEIGHT = (10, 152)


@dataclass(frozen=True)
class Face:
    """The largest face of a frame.

    Attributes:
        points: landmarks in pixels, `[478, 2]`.
        blendshapes: the activations of 52 expressions, `[52]`.
        rotation: rotation of the head against the camera, `[3, 3]`.
        count: number of faces in the frame; a second one is counted, more are not.
    """

    points: Tensor
    blendshapes: Tensor
    rotation: Tensor
    count: int

    @property
    def eyes(self) -> float:
        """The eye aspect ratio, the mean of both eyes."""
        return sum(self._eye(eye) for eye in (RIGHT_EYE, LEFT_EYE)) / 2

    def _eye(self, eye: tuple[int, ...]) -> float:
        outer, inner, a, b, c, d = (self.points[place] for place in eye)
        return float(((a - c).norm() + (b - d).norm()) / (2 * (outer - inner).norm().clamp(min=1e-6)))

    @property
    def mouth(self) -> float:
        """The distance of the lips divided by the mouth's width."""
        return self._distance(_LIPS) / max(self._distance(_MOUTH_CORNERS), 1e-6)

    @property
    def height(self) -> float:
        """The height of the face in pixels."""
        return self._distance(_FACE_HEIGHT)

    @property
    def gaze(self) -> tuple[float, float]:
        """How far the eyes look to the side (positive: to the person's left) and up, each from -1 to 1."""
        look = dict(zip(_LOOKS, self.blendshapes[11:19].tolist(), strict=True))
        side = (look["out_left"] + look["in_right"] - look["in_left"] - look["out_right"]) / 2
        up = (look["up_left"] + look["up_right"] - look["down_left"] - look["down_right"]) / 2
        return side, up

    def _distance(self, pair: tuple[int, int]) -> float:
        return float((self.points[pair[0]] - self.points[pair[1]]).norm())


# The order of MediaPipe's blendshapes 11 to 18.
_LOOKS = ("down_left", "down_right", "in_left", "in_right", "out_left", "out_right", "up_left", "up_right")


class Landmarker:
    """Finds the largest face of a frame. Each frame is looked at alone, so the result does not depend on others."""

    def __init__(self, path: Path) -> None:
        """Load the landmarker.

        Args:
            path: `face_landmarker_v2_with_blendshapes.task`.
        """
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(path)),
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
            num_faces=_MOST_FACES,
        )
        self._image, self._format = mediapipe.Image, mediapipe.ImageFormat.SRGB
        with _silence():
            self._network = vision.FaceLandmarker.create_from_options(options)
            # The first picture makes MediaPipe print more.
            self._network.detect(self._image(image_format=self._format, data=np.zeros((64, 64, 3), np.uint8)))

    def close(self) -> None:
        """Free the network. MediaPipe prints an error if Python does it at its end."""
        self._network.close()

    def __call__(self, frame: Tensor) -> Face | None:
        """Return the largest face of a frame, or None.

        Args:
            frame: `[H, W, 3]`, uint8.
        """
        pixels = np.ascontiguousarray(frame.numpy())
        found = self._network.detect(self._image(image_format=self._format, data=pixels))
        if not found.face_landmarks:
            return None
        size = torch.tensor([frame.shape[1], frame.shape[0]])
        faces = [torch.tensor([(point.x, point.y) for point in face]) * size for face in found.face_landmarks]
        heights = [float((face[_FACE_HEIGHT[0]] - face[_FACE_HEIGHT[1]]).norm()) for face in faces]
        best = heights.index(max(heights))
        return Face(
            faces[best],
            torch.tensor([shape.score for shape in found.face_blendshapes[best]]),
            torch.tensor(np.array(found.facial_transformation_matrixes[best]))[:3, :3],
            len(faces),
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what C++ code prints on stderr inside the block: MediaPipe prints lines that look like errors."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)

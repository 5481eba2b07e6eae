"""dlib's face recognition network (King, 2017): a descriptor of 128 numbers for a face."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .landmarks import Face

SAME_PERSON = 0.6
"""dlib's own limit: descriptors of one person are closer than this."""

# dlib's five points in MediaPipe's mesh: corners of the left eye, corners of the right eye, base of the nose.
_FIVE_POINTS = (263, 362, 33, 133, 2)


class FaceDescriptor:
    """Computes descriptors. The face is aligned by MediaPipe's points at the places of dlib's own five."""

    def __init__(self, path: Path) -> None:
        """Load the network.

        Args:
            path: `dlib_face_recognition_resnet_model_v1.dat`.
        """
        import dlib

        self._dlib = dlib
        self._network = dlib.face_recognition_model_v1(str(path))

    def __call__(self, frame: Tensor, face: Face) -> Tensor:
        """Return the descriptor `[128]` of a face.

        Args:
            frame: `[H, W, 3]`, uint8.
            face: the face in it.
        """
        five = face.points[list(_FIVE_POINTS)].round().int().tolist()
        xs, ys = zip(*five, strict=True)
        box = self._dlib.rectangle(min(xs), min(ys), max(xs), max(ys))
        shape = self._dlib.full_object_detection(box, [self._dlib.point(x, y) for x, y in five])
        pixels = np.ascontiguousarray(frame.numpy())
        return torch.tensor(list(self._network.compute_face_descriptor(pixels, shape)))

"""What a scan remembers of single frames: five per second, enough to follow a face."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from . import measures
from .faces import Face, FaceDetector, overlap

Frame = NDArray[np.uint8]

# Seconds from one sample to the next. A face does not come and go in between.
SAMPLE_SECONDS = 0.2
_THUMBNAIL_ROWS = 108
_JPEG_QUALITY = 80


class Sample(NamedTuple):
    """The measures of one frame.

    Attributes:
        frame: number of the frame in the file.
        time: seconds from the file's beginning.
        faces: its faces, the largest first.
        sharpness: see `measures.sharpness`; of the face if there is one.
        brightness: mean brightness of the face, or of the frame.
        dark: share of black pixels.
        bright: share of white pixels.
        joined: see `measures.joined`.
        text: see `measures.text`.
        content: the part inside black bars.
        hash: the perceptual hash.
        camera: movement of the background since the sample before it, in frame widths per second; None for the first
            sample of a shot.
        motion: movement of the face's landmarks since then, in face heights per second; None without a face.
        connected: whether the face is where a face was in the sample before; None if one of the two has none.
        thumbnail: JPEG of the frame.
    """

    frame: int
    time: float
    faces: list[Face]
    sharpness: float
    brightness: float
    dark: float
    bright: float
    joined: float
    text: float
    content: measures.Content
    hash: int
    camera: float | None
    motion: float | None
    connected: bool | None
    thumbnail: bytes


class Sampler:
    """Takes the samples of a video."""

    def __init__(self, detector: FaceDetector) -> None:
        """Begin with a video.

        Args:
            detector: finds the faces.
        """
        self._detector = detector
        self._next = -np.inf
        self._before: tuple[float, measures.SmallFrame, Face | None] | None = None

    def cut(self) -> None:
        """Say that the next frame is not connected to the last one. It is sampled in any case."""
        self._before, self._next = None, -np.inf

    def due(self, time: float) -> bool:
        """Return whether the frame at a time should be sampled.

        Args:
            time: seconds from the file's beginning.
        """
        return time >= self._next

    def take(self, number: int, time: float, frame: Frame) -> Sample:
        """Return the sample of a frame.

        Args:
            number: number of the frame.
            time: its time in seconds.
            frame: `[H, W, 3]` in RGB.
        """
        self._next = time + SAMPLE_SECONDS - 1e-3
        small = measures.small_frame(frame)
        faces = self._detector.find(frame)
        face = self._followed(faces)
        inside = measures.content(small.grey)
        grey = measures.face_crop(frame, face) if face is not None else small.grey
        brightness, dark, bright = measures.exposure(grey)
        camera = motion = connected = None
        if self._before is not None:
            former, earlier, past = self._before
            seconds = max(time - former, 1e-3)
            camera = measures.camera_shift(earlier, small, past) / seconds
            if face is not None and past is not None:
                connected = overlap(face, past) > 0
                if connected:
                    motion = measures.face_shift(past, face, frame.shape[1] / frame.shape[0]) / seconds
        self._before = (time, small, face)
        return Sample(
            number,
            time,
            [face, *(other for other in faces if other is not face)] if face is not None else [],
            measures.sharpness(grey),
            brightness,
            dark,
            bright,
            measures.joined(small.grey),
            measures.text(measures.text_frame(frame)),
            inside,
            measures.fingerprint(small, inside),
            camera,
            motion,
            connected,
            _thumbnail(small.rgb),
        )

    def _followed(self, faces: list[Face]) -> Face | None:
        """Return the face that is followed: the one where it was before, else the largest."""
        past = self._before[2] if self._before is not None else None
        if past is not None and faces and (best := max(faces, key=lambda face: overlap(face, past))):
            return best if overlap(best, past) > 0 else faces[0]
        return faces[0] if faces else None


def _thumbnail(rgb: Frame) -> bytes:
    rows, columns = rgb.shape[:2]
    size = (max(1, round(columns * _THUMBNAIL_ROWS / rows)), _THUMBNAIL_ROWS)
    picture = cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1])

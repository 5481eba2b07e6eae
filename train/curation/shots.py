"""Where a video changes from one shot to the next: PySceneDetect's detectors, fed with our own frames."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packages import require

# Change of a frame over the mean of its neighbours, and least change (of 255). PySceneDetect's default is 3 and 15. A
# cut between two takes of the same person in the same room changes less, but then it must stand out more.
_CLEAR, _FAINT = (3.0, 18.0), (4.5, 8.0)
# A change that is a cut in any case: cuts that follow each other hide each other from a comparison with neighbours.
_CERTAIN = 35.0
LONGEST_SIDE = 256
"""Longest side of the pictures in which cuts are looked for, in pixels."""
_NEIGHBOURS = 2


class ShotDetector:
    """Finds cuts: frames that differ from the frame before them much more than their neighbours do."""

    def __init__(self) -> None:
        """Begin with the first frame of a video.

        Raises:
            CurationError: if PySceneDetect is not installed.
        """
        require("cv2", "scenedetect")
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector

        self._detectors: list[Any] = [
            AdaptiveDetector(adaptive_threshold=ratio, min_scene_len=1, window_width=_NEIGHBOURS, min_content_val=least)
            for ratio, least in (_CLEAR, _FAINT)
        ]
        self._detectors.append(ContentDetector(threshold=_CERTAIN, min_scene_len=1))
        self._timecode = FrameTimecode
        self._count = 0
        self._cuts: set[int] = set()
        self._last: NDArray[np.uint8] | None = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Look at the next frame.

        Args:
            frame: `[H, W, 3]` in RGB, reduced to `LONGEST_SIDE`.
        """
        import cv2

        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if self._last is not None and picture.shape != self._last.shape:
            picture = cv2.resize(picture, self._last.shape[1::-1], interpolation=cv2.INTER_AREA)
        self._last = picture
        # The detector compares a frame with two on either side. The first and the last frame stand for those that lack.
        for _ in range(1 if self._count else 1 + _NEIGHBOURS):
            self._process()

    def _process(self) -> None:
        # It counts frames, so the rate has no meaning. Its own numbering begins with 0 too.
        for detector in self._detectors:
            found = detector.process_frame(self._timecode(self._count, 25.0), self._last)
            self._cuts.update(code.frame_num - _NEIGHBOURS for code in found)
        self._count += 1

    def cuts(self) -> list[int]:
        """Return the numbers of the frames with which new shots begin, without frame 0. No frame can follow."""
        count = self._count - _NEIGHBOURS
        for _ in range(_NEIGHBOURS if self._count else 0):
            self._process()
        return sorted(cut for cut in self._cuts if 0 < cut < count)

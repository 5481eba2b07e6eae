"""The plan of a long video: how many segments it takes, and which frames of each segment are shown.

A *segment* is one clip of the model. Each segment after the first starts from the last frames of the one before it.
"""

import math
from dataclasses import dataclass

from ..errors import VideoError

MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Plan:
    """The frames of a long video, and the segments that they come from.

    Attributes:
        frames: frames of the long video.
        segment_frames: frames of every segment, 4n + 1, as the model makes it.
        overlap: frames at a join that both segments show; they are cross-faded.
        dropped: first frames of every segment that are never shown.
    """

    frames: int
    segment_frames: int
    overlap: int = 1
    dropped: int = 0

    @property
    def shared(self) -> int:
        """First frames of a segment that lie in the time of the segment before it: the dropped ones and the overlap."""
        return self.overlap + self.dropped

    @property
    def step(self) -> int:
        """Frames from the beginning of a segment to the beginning of the next one."""
        return self.segment_frames - self.shared

    @property
    def segments(self) -> int:
        """Number of segments."""
        return max(1, -(-(self.frames - self.overlap) // self.step))

    def first_frame(self, number: int) -> int:
        """Return the place in the long video of the first frame that a segment shows.

        Args:
            number: number of the segment, from 0.
        """
        return number * self.step

    def shown(self, number: int) -> int:
        """Return how many frames of a segment are in the long video.

        Its dropped frames are not, and neither are its last ones, which are cross-faded into the next segment. The last
        segment is shown to the end of the video.

        Args:
            number: number of the segment, from 0.
        """
        return self.frames - self.first_frame(number) if number == self.segments - 1 else self.step


def plan_video(seconds: float, fps: float, segment_frames: int, overlap: int = 1, dropped: int = 0) -> Plan:
    """Plan a long video.

    Args:
        seconds: length of the video.
        fps: its frames per second.
        segment_frames: frames of a segment, 4n + 1.
        overlap: frames at a join that both segments show, at least 1: a segment starts from the last frame.
        dropped: first frames of every segment that are never shown.

    Raises:
        VideoError: if the length is no positive number, is longer than an hour, or if a segment would add no
            frames.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise VideoError(
            f"The length is {seconds:g} seconds, expected more than 0 and at most {MAX_SECONDS:g} (one hour). Set "
            f"seconds to the length of the video that you want."
        )
    if not math.isfinite(fps) or fps <= 0:
        raise VideoError(f"The frame rate is {fps}, expected a positive number of frames per second.")
    plan = Plan(max(1, round(seconds * fps)), segment_frames, overlap, dropped)
    # A segment starts from a frame that the one before it shows, after its own dropped frames.
    most = segment_frames - dropped - max(1, dropped)
    if most < 1:
        raise VideoError(
            f"A segment of {segment_frames} frames"
            f"{f', of which {dropped} are dropped,' if dropped else ''} adds nothing to the one before it. Make the "
            f"segments longer."
        )
    if not 1 <= overlap <= most:
        raise VideoError(
            f"The overlap is {overlap} frames, expected 1 to {most} for segments of {segment_frames} frames. Use 1, or "
            f"make the segments longer."
        )
    return plan

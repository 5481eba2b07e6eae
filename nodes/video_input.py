"""Read an IMAGE or a VIDEO frame by frame, with its sound."""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from comfy_api.latest import Input, InputImpl
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.media.audio import Audio, read_audio, waveform_audio
from ..magicdistill_core.media.video import read_video
from ..magicdistill_core.media.video_writing import frame_rate
from .image_input import check_images, rgb


class Clip(NamedTuple):
    """A clip to write: its frames (read once), their number if known, their frame rate, and the clip's own sound.

    The notes about its pictures are complete after the last frame.
    """

    frames: Iterator[Tensor]
    total: int | None
    width: int
    height: int
    rate: Fraction
    audio: Audio | None
    notes: list[str]


def frames_clip(images: Tensor, rate: Fraction, dropped: int = 0) -> Clip:
    """Turn an IMAGE without its first `dropped` frames into RGB frames, converted one at a time.

    Args:
        images: the IMAGE.
        rate: its frames per second.
        dropped: number of first frames to leave out.

    Raises:
        VideoError: if no frame is left.
    """
    check_images(images, "video")
    if dropped and dropped >= len(images):
        raise VideoError(
            f"The IMAGE has {len(images)} frames, and its first {dropped} are to be dropped, which leaves none. Make a "
            f"longer video, or set drop_frames to 0."
        )
    images = images[dropped:]
    count, height, width, _ = images.shape
    return Clip((rgb(image) for image in images), count, width, height, rate, None, [])


def video_clip(video: Input.Video, deep: bool, rate: Fraction | None = None) -> Clip:
    """Turn a VIDEO into frames. A file is read frame by frame at a constant rate; tensors are used as they are.

    Args:
        video: the VIDEO.
        deep: whether to read more than 8 bits of a file that has them.
        rate: the frame rate to which a file is converted; None keeps its own.
    """
    if not isinstance(video, InputImpl.VideoFromFile):
        parts = video.get_components()
        clip = frames_clip(parts.images, frame_rate(parts.frame_rate))
        return clip if parts.audio is None else clip._replace(audio=sound_of(parts.audio))
    source, (start, duration) = video.get_stream_source(), video.get_active_trim_window()
    if rate is None:
        rate = frame_rate(read_video(source, start=start, duration=duration).rate)
    # A constant rate, even if the file's rate varies, keeps sound and picture synchronous.
    opened = read_video(source, float(rate), start=start, duration=duration, deep=deep)
    first = next(opened.frames)
    height, width, _ = first.shape

    def frames() -> Iterator[Tensor]:
        yield first
        yield from opened.frames

    sound = read_audio(source, opened.start, duration)
    return Clip(frames(), opened.count, width, height, rate, sound, opened.notes)


def sound_of(audio: Input.Audio) -> Audio:
    """Convert an AUDIO for the writer.

    Args:
        audio: the AUDIO.
    """
    return waveform_audio(audio["waveform"], int(audio["sample_rate"]))

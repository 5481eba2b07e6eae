"""Join mp4 files of one kind into one, without encoding their pictures again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av

from ..errors import VideoError
from ..files import atomic_file
from .audio import Audio
from .sound_stream import SoundStream

_FLAGS = "use_metadata_tags"
# The index comes first, and each frame is a fragment of its own: the file is a valid video after every frame.
_GROWING = {"movflags": f"{_FLAGS}+empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
# x264 shows a frame at most this many frames after it is decoded.
_REORDERED = 2
_COMPLETE = {"movflags": f"{_FLAGS}+faststart"}


class JoinedVideo:
    """An open mp4 file to which other mp4 files are appended.

    Attributes:
        frames: number of frames so far.
    """

    def __init__(self, path: Path, tags: Mapping[str, str], options: dict[str, str], audio: Audio | None) -> None:
        self.frames = 0
        self._path, self._audio = path, audio
        # Without "file:", FFmpeg takes the name 12:30.mp4 for a protocol.
        self._container = av.open(f"file:{path.absolute()}", "w", format="mp4", options=options)
        self._container.metadata.update(tags)
        self._stream: av.VideoStream | None = None
        self._sound: SoundStream | None = None
        self._kind: tuple[object, ...] | None = None

    def append(self, part: Path) -> None:
        """Append the pictures of a file.

        Args:
            part: an mp4 file of this project, with the same size, rate and encoder as the parts before it.

        Raises:
            VideoError: if the part cannot be read, or is of another kind.
        """
        try:
            with av.open(f"file:{part.absolute()}") as source:
                self._copy(source.streams.video[0], part)
        except (av.FFmpegError, IndexError) as error:
            raise VideoError(
                f"{part.name} cannot be read as a part of a video ({error}). Delete it and run again: it is then made "
                f"anew."
            ) from error

    def _copy(self, source: av.VideoStream, part: Path) -> None:
        rate = source.average_rate or Fraction(1)
        kind = (source.width, source.height, rate, source.codec_context.name, source.codec_context.extradata)
        if self._stream is None:
            self._kind, self._stream = kind, self._container.add_stream_from_template(source)
            if self._audio is not None:
                self._sound = SoundStream(self._container, "aac", self._audio)
        elif kind != self._kind:
            raise VideoError(
                f"{part.name} is {source.width} x {source.height} at {float(rate):g} frames per second, and differs "
                f"from the parts before it in size, rate or encoder. Delete it and run again: it is then made anew."
            )
        ahead = self.frames
        for packet in source.container.demux(source):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            frame = 1 / (rate * packet.time_base)
            packet.pts += round(ahead * frame)
            # A short part reorders fewer frames than a long one, so the times of decoding are counted anew.
            packet.dts = round((self.frames - _REORDERED) * frame)
            packet.stream = self._stream
            with _explained(self._path):
                self._container.mux(packet)
                self.frames += 1
                if self._sound is not None:
                    self._sound.write_until(self.frames / rate)

    def finish(self) -> None:
        """Write the sound that the encoder still buffers."""
        if self._sound is not None:
            self._sound.finish()

    def close(self) -> None:
        """Close the file."""
        self._container.close()


@contextmanager
def growing_video(path: Path, tags: Mapping[str, str]) -> Iterator[JoinedVideo]:
    """Open a file that is a valid video after every appended part, also if the process is killed then.

    The last frame of a part appears with the next part, or when the file is closed.

    Args:
        path: the file to write; an existing file is replaced.
        tags: text entries that are stored in the file.

    Yields:
        The file; call its `append` for every part.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        joined = JoinedVideo(path, tags, _GROWING, None)
    # Errors of the caller inside the block are no errors of this file.
    try:
        yield joined
    finally:
        with _explained(path):
            joined.close()


def join_videos(parts: Iterable[Path], path: Path, tags: Mapping[str, str], audio: Audio | None = None) -> int:
    """Join mp4 files into one file, which replaces `path` atomically.

    Args:
        parts: the files, in their order.
        path: the file to write.
        tags: text entries that are stored in the file.
        audio: the sound; None for a silent file. Longer sound is cut at the end of the video, and shorter sound leaves
            the rest silent.

    Returns:
        The number of frames.

    Raises:
        VideoError: if there are no parts, if a part is unusable, or if the file cannot be written.
    """
    with _explained(path), atomic_file(path) as temporary:
        joined = JoinedVideo(temporary, tags, _COMPLETE, audio)
        try:
            for part in parts:
                joined.append(part)
            joined.finish()
        finally:
            joined.close()
        if not joined.frames:
            raise VideoError(f"{path.name} cannot be joined from no parts.")
    return joined.frames


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} cannot be written ({error.strerror}). Check the free disk space and the folder's permissions, "
            f"then run again: finished segments are kept."
        ) from error

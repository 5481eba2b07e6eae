"""Open media files for reading. FFmpeg gets the bytes of the file and never its name.

FFmpeg interprets names: `12:30.mp4` has the protocol `12`, `concat:…` joins files, and `%03d.png` is a series of
pictures. A playlist can also name other files or web pages, which are not opened.
"""

import errno
import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import av

from ..errors import VideoError

Source = str | Path | io.BytesIO
"""A media file: its path, or its bytes."""

MOST_PIXELS = 1 << 27
"""Pixels of the largest picture that is decoded: 16384 x 8192 needs 0.4 GB. A damaged file can state any size."""
# With an empty list of protocols, FFmpeg opens nothing except the bytes that it gets. They are options of the container
# only: with others, PyAV 16 crashes on files whose streams are found late (flv, ts).
_OPTIONS = {"protocol_whitelist": ""}
_BUFFER = 1 << 16


class _Bytes:
    """The bytes of a source in the form that PyAV reads. It has no attribute `name`, which FFmpeg would interpret."""

    def __init__(self, file: io.BytesIO | io.BufferedReader) -> None:
        self._file = file
        self.read, self.tell, self.close = file.read, file.tell, file.close

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL  # a damaged file can point to any place; FFmpeg knows what to do


class Media:
    """An opened media file. It is a context manager that closes the file.

    Attributes:
        container: PyAV's container. Tags that are not UTF-8 contain replacement characters.
        name: what messages call the file.
    """

    def __init__(self, source: Source, kind: str = "video") -> None:
        """Open a file.

        Args:
            source: a file's path, or its bytes; several readers of the same bytes do not disturb each other.
            kind: what messages call the contents.

        Raises:
            VideoError: if the file does not exist, is empty, or is in no format that FFmpeg knows.
        """
        self.name = f"The {kind}" if isinstance(source, io.BytesIO) else str(source)
        self._kind = kind
        self._bytes = _Bytes(self._open(source))
        try:
            self.container = av.open(
                self._bytes, container_options=_OPTIONS, metadata_errors="replace", buffer_size=_BUFFER
            )
        except (av.FFmpegError, OSError) as error:
            self._bytes.close()
            raise self.unreadable(error) from error
        except BaseException:
            self._bytes.close()
            raise

    def _open(self, source: Source) -> io.BytesIO | io.BufferedReader:
        if isinstance(source, io.BytesIO):
            return io.BytesIO(source.getvalue())
        path = Path(source)
        try:
            if not path.is_file():
                raise VideoError(f"{path} does not exist or is not a file. Check the path of the {self._kind}.")
            if path.stat().st_size == 0:
                raise VideoError(f"{path} is empty (0 bytes). Copy or record the {self._kind} again.")
            return path.open("rb")
        except OSError as error:
            raise VideoError(
                f"{path} cannot be opened ({error.strerror}). Check its permissions and its disk."
            ) from error

    def __enter__(self) -> "Media":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing it twice is allowed."""
        self.container.close()
        self._bytes.close()

    @property
    def origin(self) -> float:
        """The time of the file's beginning on its own clock, in seconds. Players show it as 0:00."""
        return (self.container.start_time or 0) / av.time_base

    def packets(self, stream: av.stream.Stream) -> Iterator[av.Packet]:
        """Yield the packets of one stream. The last one is empty, which makes decoders return their last frames.

        Args:
            stream: a stream of the container.
        """
        try:
            for packet in self.container.demux(stream):
                # An empty packet in the middle is a frame that the camera dropped. Decoders would take it for the end.
                if packet.size:
                    yield packet
        except IndexError:
            # PyAV raises it at the end of files in which FFmpeg finds more streams while it reads.
            pass
        end = av.Packet()
        end.time_base = stream.time_base
        yield end

    def unreadable(self, error: BaseException) -> VideoError:
        """Return the error for a file that FFmpeg cannot read.

        Args:
            error: the error of PyAV or of the disk.
        """
        reason = getattr(error, "strerror", None) or type(error).__name__
        return VideoError(
            f"{self.name} cannot be read as a {self._kind} ({reason}). It is damaged or in an unsupported format. "
            f"Copy it again, or re-encode it, for example to mp4 with h264."
        )

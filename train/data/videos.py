"""The video files of a folder."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from magicdistill_core.errors import VideoError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)


def find_videos(videos: Path) -> dict[str, Path]:
    """Return the paths of the videos in a folder and its subfolders, by their names relative to the folder, sorted.

    Linked folders are searched too. Hidden files and folders are left out: trash, and macOS's `._` files.

    Args:
        videos: the folder, or a single video file, which is returned under its own name.

    Raises:
        VideoError: if there is no video.
    """
    if videos.is_file():
        return {videos.name: videos}
    if not videos.is_dir():
        raise VideoError(f"{videos} does not exist. Expected a folder of videos, or one video.")
    found = sorted(path for path in _files(videos) if _is_video(path))
    if not found:
        raise VideoError(
            f"The folder {videos} holds no video (files named {', '.join(sorted(VIDEO_SUFFIXES))}). Check the path."
        )
    return {path.relative_to(videos).as_posix(): path for path in found}


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, also of linked ones. No folder is entered twice.

    The folder's own subfolders come before linked ones, so files keep the names that they have without the links.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    for start in waiting:  # grows
        for here, folders, names in os.walk(start, onerror=_warn_unreadable):
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            hidden = [name for name in folders + names if name.startswith(".")]
            folders[:] = sorted(name for name in folders if name not in hidden)
            if left_out := [name for name in hidden if _is_video(Path(name)) or Path(here, name).is_dir()]:
                logger.info(
                    "%s: %d hidden files and folders were left out, such as %s", here, len(left_out), left_out[0]
                )
            waiting += [path for name in folders if (path := Path(here, name)).is_symlink()]
            for name in names:
                path = Path(here, name)
                # A broken link that is named like a video is reported with the videos that cannot be read.
                if path.is_symlink() and not path.exists() and not _is_video(path):
                    logger.warning("skipped: the link %s leads to %s, which does not exist", path, os.readlink(path))
                elif name not in hidden and not path.is_dir():
                    yield path


def _warn_unreadable(error: OSError) -> None:
    logger.warning("skipped: the folder %s cannot be read (%s)", error.filename, error.strerror)

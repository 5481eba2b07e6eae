"""Scanning a folder: every video is looked at once, by several processes, and the result is a manifest."""

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from magicdistill_core.errors import cause
from magicdistill_core.hashes import file_sha256

from ..console import progress_bar
from ..data.contents import content_of
from ..data.videos import find_videos
from ..folder_lock import folder_lock
from ..signals import StopRequest
from .faces import MediaPipeFaces
from .look import look
from .manifest import ManifestWriter, Row
from .samples import SAMPLE_SECONDS

logger = logging.getLogger(__name__)

# A killed scan loses at most so many seconds of work.
_PART_SECONDS, _PART_ROWS = 30.0, 2000
_detector: MediaPipeFaces | None = None


@dataclass
class ScanReport:
    """The result of a scan.

    Attributes:
        added: number of videos that this scan looked at.
        already_in: number of videos that an earlier scan looked at.
        shots: number of shots that were added.
        damaged: number of videos of the added ones that could not be read, or not completely.
        stopped_by: the name of the signal that stopped the scan; None if it finished.
    """

    added: int = 0
    already_in: int = 0
    shots: int = 0
    damaged: int = 0
    stopped_by: str | None = None


def scan(videos: Path, out: Path, faces: Path, processes: int = 1, console: Console | None = None) -> ScanReport:
    """Look at every video of a folder that the manifest does not have yet.

    Args:
        videos: a folder, or one video; its subfolders are searched too.
        out: the manifest's folder, which is created or continued.
        faces: MediaPipe's face landmarker.
        processes: number of processes that look at videos.
        console: shows the progress bar; None shows none.

    Raises:
        MagicDistillError: if there are no videos, the landmarker or the manifest cannot be used, or another process
            writes `out`.
    """
    sources = find_videos(videos)
    MediaPipeFaces(faces).close()  # a wrong file is found here, and not in another process
    report = ScanReport()
    settings: dict[str, str | float] = {"faces_sha256": file_sha256(faces), "sample_seconds": SAMPLE_SECONDS}
    with folder_lock(out, "magicdistill data scan"):
        writer = ManifestWriter(out, videos, settings)
        with (
            StopRequest("The scan ends after the videos that it is looking at") as stop,
            progress_bar(console, disable=console is None) as progress,
        ):
            task = progress.add_task("Scanning", total=len(sources), note="")
            waiting: list[Row] = []
            written = time.monotonic()
            wanted = _wanted(sources, writer, report)
            for name, rows in _looked_at(wanted, faces, processes, stop):
                waiting += rows
                report.added += 1
                report.shots += sum(row.get("error") is None for row in rows)
                if errors := [row["error"] for row in rows if row.get("error") is not None]:
                    report.damaged += 1
                    logger.warning("damaged: %s", errors[0])
                progress.update(task, completed=report.added + report.already_in, note=name)
                if time.monotonic() - written > _PART_SECONDS or len(waiting) >= _PART_ROWS:
                    writer.add(waiting)
                    waiting, written = [], time.monotonic()
            if waiting:
                writer.add(waiting)
            report.stopped_by = stop.name
    return report


def _wanted(sources: Mapping[str, Path], writer: ManifestWriter, report: ScanReport) -> Iterator[tuple[str, Path, Row]]:
    """Yield the videos that the manifest does not have, each with its identity."""
    for name, path in sources.items():
        try:
            content = content_of(path)
        except OSError as error:
            yield (
                name,
                path,
                {"video": name, "bytes": 0, "sha256": "", "error": f"{path} cannot be read ({cause(error)})."},
            )
            continue
        if writer.known.get(name) == content:
            report.already_in += 1
        else:
            yield name, path, {"video": name, "bytes": content.bytes, "sha256": content.sha256}


def _looked_at(
    wanted: Iterator[tuple[str, Path, Row]], faces: Path, processes: int, stop: StopRequest
) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows of videos as they get ready.

    A decoder can crash its process. Then the videos that were looked at are tried again, each in a process of its own.
    """
    running: dict[Future[list[Row]], tuple[str, Path, Row]] = {}
    again: deque[tuple[str, Path, Row]] = deque()
    pool = _pool(faces, processes)
    try:
        while True:
            while not stop.name and not again and len(running) < 2 * processes and (entry := next(wanted, None)):
                if "error" in entry[2]:
                    yield entry[0], [entry[2] | {"shot": 0}]
                else:
                    running[pool.submit(_look, entry[1])] = entry
            if not running and not again:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                entry = running.pop(future)
                try:
                    yield entry[0], [entry[2] | row for row in future.result()]
                except BrokenProcessPool:
                    again.append(entry)
            if again and not running:
                pool.shutdown(cancel_futures=True)
                while again:
                    entry = again.popleft()
                    yield entry[0], [entry[2] | row for row in _alone(entry[1], faces)]
                pool = _pool(faces, processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(path: Path, faces: Path) -> list[Row]:
    with _pool(faces, 1) as pool:
        try:
            return pool.submit(_look, path).result()
        except BrokenProcessPool:
            return [
                {"shot": 0, "error": f"{path} makes its decoder crash. Re-encode it, for example to mp4 with h264."}
            ]


def _pool(faces: Path, processes: int) -> ProcessPoolExecutor:
    # A forked child would share the threads' locks of this process.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _begin, (faces,))


def _begin(faces: Path) -> None:
    """Load the detector of a process. Ctrl-C reaches every process of the terminal; only the main one answers it."""
    import atexit
    import signal

    import cv2

    cv2.setNumThreads(1)  # every process has a core of its own
    global _detector
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _detector = MediaPipeFaces(faces)
    atexit.register(_detector.close)


def _look(path: Path) -> list[Row]:
    assert _detector is not None
    return look(path, _detector)

"""Scoring all videos in several processes. Each result is a file, so a stopped run goes on where it was."""

import gc
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from magicdistill_core.errors import MagicDistillError, VideoError, cause
from magicdistill_core.hashes import file_sha256

from .folders import Item
from .frames import FrameReader
from .measures import all_measures
from .measures.base import Accumulator, Measure, NotScoredError, Start
from .network_files import NETWORKS, NetworkFolder, NotRunError
from .scores import Scores, load_scores, save_scores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A measure whose networks were found.

    Attributes:
        measure: the measure.
        files: paths of its networks.
    """

    measure: Measure
    files: Mapping[str, Path]

    @property
    def identity(self) -> str:
        """What decides its numbers: the measure, its version and its networks."""
        networks = [NETWORKS[name].sha256 for name in self.measure.networks]
        return json.dumps([self.measure.key, self.measure.version, self.measure.settings, networks])


def find_networks(measures: Iterable[Measure], networks: NetworkFolder) -> tuple[list[Ready], dict[str, str]]:
    """Return the measures that can run, and by the key of each other one why it cannot.

    Args:
        measures: the measures that a user wants.
        networks: the user's network files.
    """
    ready, missing = [], dict[str, str]()
    for measure in measures:
        try:
            ready.append(Ready(measure, {name: networks.find(name) for name in measure.networks}))
        except NotRunError as error:
            missing[measure.key] = str(error)
    return ready, missing


@dataclass(frozen=True)
class Task:
    """A video, and the results that are missing.

    Attributes:
        item: the video.
        wanted: the file of each missing result, by the key of its measure.
    """

    item: Item
    wanted: Mapping[str, Path]


@dataclass
class Outcome:
    """What became of a task.

    Attributes:
        unreadable: why the video could not be read; None if it could.
        failed: why a measure broke, by its key.
    """

    unreadable: str | None = None
    failed: dict[str, str] = field(default_factory=dict)


def result_file(cache: Path, item: Item, ready: Ready) -> Path:
    """Return the file of a result: its name follows from the bytes of everything that decides it.

    Args:
        cache: folder of all results.
        item: the video.
        ready: the measure.

    Raises:
        VideoError: if a file cannot be read.
    """
    parts = [ready.identity]
    if ready.measure.uses_image:
        parts.append(_sha256(item.image) if item.image is not None else "no image")
    if ready.measure.uses_reference and item.reference is not None:
        parts.append(_sha256(item.reference))
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    return cache / ready.measure.key / f"{_sha256(item.path)[:20]}-{digest}.safetensors"


@cache
def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}).") from error


def score_all(
    tasks: Sequence[Task],
    ready: Sequence[Ready],
    fvd_frames: int,
    device: torch.device,
    processes: int,
    advance: Callable[[], None],
) -> dict[Path, Outcome]:
    """Score videos, and write each result as soon as it is there.

    Args:
        tasks: the videos with missing results.
        ready: the measures.
        fvd_frames: see `all_measures`.
        device: where networks compute.
        processes: number of processes; 1 uses this one.
        advance: called after each video.

    Returns:
        What became of each video, by its path.

    Raises:
        MagicDistillError: if a network cannot be loaded, or a process was killed.
    """
    files = {one.measure.key: dict(one.files) for one in ready}
    outcomes: dict[Path, Outcome] = {}
    if processes == 1 or len(tasks) < 2:
        scorer = _Scorer(files, fvd_frames, device)
        for task in tasks:
            outcomes[task.item.path] = scorer(task)
            advance()
        # MediaPipe prints an error if Python collects its objects only when it ends.
        del scorer
        gc.collect()
        return outcomes
    count = min(processes, len(tasks))
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    with ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), _begin, (files, fvd_frames, str(device), threads)
    ) as pool:
        waiting = {pool.submit(_score, task): task for task in tasks}
        try:
            for done in as_completed(waiting):
                outcomes[waiting[done].item.path] = done.result()
                advance()
        except BrokenProcessPool as error:
            raise MagicDistillError(
                "A process that scores videos was killed, often because memory is too small. The results so far are "
                "kept. Start the command again with a smaller --processes."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


class _Scorer:
    """Scores videos with networks that are loaded when they are first needed."""

    def __init__(self, files: Mapping[str, Mapping[str, Path]], fvd_frames: int, device: torch.device) -> None:
        self._files, self._device = files, device
        self._measures = {measure.key: measure for measure in all_measures(fvd_frames)}
        self._starts: dict[str, Start] = {}

    def __call__(self, task: Task) -> Outcome:
        outcome = Outcome()
        try:
            reader = FrameReader(task.item.path)
            running: dict[str, Accumulator] = {}
            results: dict[str, Scores] = {}
            for key in task.wanted:
                try:
                    running[key] = self._start(key)(task.item, reader.facts)
                except NotScoredError as reason:
                    results[key] = Scores(left_out=str(reason))
                except Exception as error:
                    outcome.failed[key] = _reason(error)
            for frames in reader.groups():
                for key in list(running):
                    try:
                        running[key].add(frames)
                    except Exception as error:
                        del running[key]
                        outcome.failed[key] = _reason(error)
        except VideoError as error:
            outcome.unreadable = str(error)
            return outcome
        for key, accumulator in running.items():
            try:
                results[key] = accumulator.finish()
            except NotScoredError as reason:
                results[key] = Scores(left_out=str(reason))
            except Exception as error:
                outcome.failed[key] = _reason(error)
        for key, scores in results.items():
            save_scores(task.wanted[key], scores, reader.facts.as_json())
        return outcome

    def _start(self, key: str) -> Start:
        if key not in self._starts:
            self._starts[key] = self._measures[key].make(self._files[key], self._device)
        return self._starts[key]


def _reason(error: Exception) -> str:
    """Return a sentence about an error inside a measure. One broken measure must not lose the results of all others."""
    if isinstance(error, MagicDistillError):
        return str(error)
    logger.warning("a measure failed", exc_info=error)
    return f"{type(error).__name__}: {cause(error)}"


_scorer: _Scorer | None = None


def _begin(files: Mapping[str, Mapping[str, Path]], fvd_frames: int, device: str, threads: int) -> None:
    global _scorer
    torch.set_num_threads(threads)
    _scorer = _Scorer(files, fvd_frames, torch.device(device))


def _score(task: Task) -> Outcome:
    assert _scorer is not None
    return _scorer(task)


def read_results(files: Mapping[str, Path]) -> dict[str, tuple[Scores, dict[str, object]]]:
    """Read the results of a video that are there, by the key of the measure.

    Args:
        files: the file of each result.
    """
    found = {key: load_scores(path) for key, path in files.items()}
    return {key: result for key, result in found.items() if result is not None}

"""One evaluation, from folders of videos to the result."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from magicdistill_core.errors import ConfigError, VideoError

from ..console import progress_bar
from .folders import Item, System, read_systems
from .measures import all_measures
from .measures.base import Measure
from .network_files import NetworkFolder
from .scores import is_complete
from .scoring import Outcome, Ready, Task, find_networks, read_results, result_file, score_all
from .summary import (
    DRIFTS,
    ScoredVideo,
    by_start,
    columns_of,
    comparability,
    difference,
    facts_of,
    figure,
    set_distance,
)

logger = logging.getLogger(__name__)

REFERENCE = "reference"
_CACHE = "cache"


@dataclass(frozen=True)
class Request:
    """What a user wants to have measured.

    Attributes:
        generated: folders of videos by name.
        out: folder of the result.
        images: folder or table of start images.
        reference: folder of reference videos.
        networks: folder of network files.
        measures: keys of the wanted measures; empty for all.
        fvd_frames: number of frames of a clip for FVD.
        processes: number of processes.
        device: where networks compute.
    """

    generated: Mapping[str, Path]
    out: Path
    images: Path | None = None
    reference: Path | None = None
    networks: Path | None = None
    measures: Sequence[str] = ()
    fvd_frames: int = 16
    processes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        result: the figures, as they are written to `results.json`.
        measures: the measures that ran.
        videos: all videos by the folder's name; the reference's are there under `reference`.
    """

    result: dict[str, Any]
    measures: list[Measure]
    videos: dict[str, list[ScoredVideo]]


def evaluate(request: Request, console: Console) -> Evaluation:
    """Score all videos and compute the figures.

    Args:
        request: what to measure.
        console: where to show progress.

    Raises:
        MagicDistillError: if the request is unusable. Videos and measures that are unusable are left out and named.
    """
    wanted = wanted_measures(request)
    ready, missing = find_networks(wanted, NetworkFolder(request.networks))
    systems = read_systems(request.generated, request.images, request.reference)
    if request.reference is not None:
        if REFERENCE in request.generated:
            raise ConfigError(f"A folder of --generated is called {REFERENCE!r}, like the folder of --reference.")
        real = read_systems({REFERENCE: request.reference}, request.images, None)[0]
        systems.append(System(REFERENCE, real.folder, real.items, ()))
    else:
        missing |= {one.measure.key: "--reference missing" for one in ready if _needs_reference(one.measure)}
        ready = [one for one in ready if not _needs_reference(one.measure)]
    files, unreadable = _result_files(systems, ready, request.out / _CACHE)
    outcomes = _score(systems, ready, files, request, console)
    for path, reason in unreadable.items():
        outcomes[path] = Outcome(unreadable=reason)
    videos = {system.name: [_scored(item, files, outcomes) for item in system.items] for system in systems}
    measures = [one.measure for one in ready]
    result = _result(systems, videos, ready, missing, wanted)
    return Evaluation(result, measures, videos)


def wanted_measures(request: Request) -> list[Measure]:
    """Return the measures that a request names, or all.

    Raises:
        ConfigError: if there is no such measure.
    """
    measures = all_measures(request.fvd_frames)
    keys = {measure.key: measure for measure in measures}
    if unknown := [key for key in request.measures if key not in keys]:
        raise ConfigError(f"There is no measure {unknown[0]!r}. The measures are {', '.join(keys)}.")
    return [measure for key, measure in keys.items() if not request.measures or key in request.measures]


def _needs_reference(measure: Measure) -> bool:
    return measure.uses_reference or measure.distance is not None


Files = dict[Path, dict[str, Path]]


def _result_files(systems: Sequence[System], ready: Sequence[Ready], cache: Path) -> tuple[Files, dict[Path, str]]:
    """Return the file of each result by the video's path and the measure's key, and why videos cannot be read."""
    files: Files = {}
    unreadable = {}
    for system in systems:
        for item in system.items:
            try:
                files[item.path] = {
                    one.measure.key: result_file(cache, item, one)
                    for one in ready
                    if not one.measure.uses_reference or item.reference is not None
                }
            except VideoError as error:
                files[item.path], unreadable[item.path] = {}, str(error)
    return files, unreadable


def _score(
    systems: Sequence[System], ready: Sequence[Ready], files: Files, request: Request, console: Console
) -> dict[Path, Outcome]:
    tasks: dict[Path, Task] = {}
    for system in systems:
        for item in system.items:
            absent = {key: path for key, path in files[item.path].items() if not is_complete(path)}
            if absent:
                tasks[item.path] = Task(item, absent)
    total = sum(len(system.items) for system in systems)
    if kept := total - len(tasks):
        logger.info("%d of %d videos have all their results from before", kept, total)
    with progress_bar(console) as bar:
        task = bar.add_task("videos", total=len(tasks), note="")
        return score_all(
            list(tasks.values()),
            ready,
            request.fvd_frames,
            request.device,
            request.processes,
            lambda: bar.advance(task),
        )


def _scored(item: Item, files: Files, outcomes: Mapping[Path, Outcome]) -> ScoredVideo:
    found = read_results(files[item.path])
    outcome = outcomes.get(item.path, Outcome())
    facts = next((facts for _, facts in found.values()), {})
    return ScoredVideo(
        item, facts, {key: scores for key, (scores, _) in found.items()}, outcome.unreadable, outcome.failed
    )


def _result(
    systems: Sequence[System],
    videos: Mapping[str, list[ScoredVideo]],
    ready: Sequence[Ready],
    missing: Mapping[str, str],
    wanted: Sequence[Measure],
) -> dict[str, Any]:
    measures = [one.measure for one in ready]
    facts = {name: facts_of(some) for name, some in videos.items()}
    warnings = [warning for system in systems for warning in system.warnings] + comparability(facts)
    names = [system.name for system in systems]
    folders = {}
    of_folders: dict[str, list[str]] = {}
    for system in systems:
        some = videos[system.name]
        distances, more = (
            _distances(some, videos.get(REFERENCE, []), measures) if system.name != REFERENCE else ({}, [])
        )
        for warning in more:
            of_folders.setdefault(warning, []).append(system.name)
        folders[system.name] = {
            "folder": str(system.folder),
            "reference": system.name == REFERENCE,
            "facts": facts[system.name],
            "figures": {column.name: figure(by_start(some, column.name)) for column in columns_of(measures)},
            "distances": distances,
            "drift": _drift(some),
            "left_out": [entry for video in some for entry in _left_out(video)],
            "notes": {video.item.name: video.notes for video in some if video.notes},
            "videos": {video.item.name: _of_video(video) for video in some},
        }
    warnings += [f"{', '.join(some)}: {warning}" for warning, some in of_folders.items()]
    others = [name for name in names[1:] if name != REFERENCE]
    return {
        "format": 1,
        "systems": folders,
        "differences": {
            f"{other} - {names[0]}": {
                column.name: difference(by_start(videos[other], column.name), by_start(videos[names[0]], column.name))
                for column in columns_of(measures)
            }
            for other in others
        },
        "not_run": _not_run(wanted, missing),
        "networks": {name: str(path) for one in ready for name, path in one.files.items()},
        "warnings": warnings,
    }


def _distances(
    some: Sequence[ScoredVideo], reference: Sequence[ScoredVideo], measures: Sequence[Measure]
) -> tuple[dict[str, Any], list[str]]:
    found, warnings = {}, []
    for measure in measures:
        if measure.distance is not None:
            found[measure.distance.column.name], more = set_distance(measure.distance, measure, some, reference)
            warnings += more
    return found, warnings


def _drift(some: Sequence[ScoredVideo]) -> dict[str, Any]:
    return {
        name: {kind: figure(by_start(some, f"{name}.{kind}", drift=True)) for kind in ("share", "seconds")}
        for name in DRIFTS
        if any(video.curve(name)[0] for video in some)
    }


def _left_out(video: ScoredVideo) -> list[dict[str, str]]:
    """Return what of a video is not in the figures, and why."""
    if video.unreadable is not None:
        return [{"video": video.item.name, "measure": "all", "reason": video.unreadable}]
    reasons = {key: scores.left_out for key, scores in video.scores.items() if scores.left_out is not None}
    reasons |= dict(video.failed)
    return [{"video": video.item.name, "measure": key, "reason": reason} for key, reason in reasons.items()]


def _of_video(video: ScoredVideo) -> dict[str, Any]:
    values = {name: value for scores in video.scores.values() for name, value in scores.values.items()}
    return {
        "start": video.item.start,
        "facts": dict(video.facts),
        "values": values,
        "drift": {name: value for name, value in video.drifts.items() if value is not None},
    }


def _not_run(wanted: Sequence[Measure], missing: Mapping[str, str]) -> dict[str, str]:
    return {measure.key: missing[measure.key] for measure in wanted if measure.key in missing}

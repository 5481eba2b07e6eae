"""From the scores of single videos to the figures of folders: means, intervals, differences, distances between sets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch

from magicdistill_core.metrics.bootstrap import bootstrap
from magicdistill_core.metrics.first_last import first_last
from magicdistill_core.metrics.frechet import frechet_distance, halves_distance

from .folders import Item
from .measures.base import Column, Measure, SetDistance
from .scores import Scores

_SEED = 0
_FEW_STARTS = 30
# Curves whose drift is a figure: sharpness in per cent would hide a black beginning, so all are differences.
DRIFTS = {
    "sharpness": "sharpness (levels)",
    "contrast": "contrast (levels)",
    "red": "red (levels)",
    "green": "green (levels)",
    "blue": "blue (levels)",
    "lpips_start": "LPIPS to the start image",
    "subject": "cosine to the first frame (DINO)",
    "imaging_quality": "imaging quality",
    "aesthetic_quality": "aesthetic quality",
    "identity_distance": "identity distance (dlib)",
}


@dataclass
class ScoredVideo:
    """All that is known of one video.

    Attributes:
        item: the video.
        facts: size, frame rate, codec and number of frames; empty if nothing could be read.
        scores: scores by the key of the measure.
        unreadable: why it could not be read.
        failed: why measures failed, by key.
    """

    item: Item
    facts: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    unreadable: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """Return a number by its name; None if it was not measured."""
        for scores in self.scores.values():
            if name in scores.values:
                return scores.values[name]
        return None

    def curve(self, name: str) -> tuple[list[float], float]:
        """Return a curve and its values per second; empty if it was not measured."""
        for scores in self.scores.values():
            if name in scores.curves:
                return scores.curves[name], scores.rate
        return [], 0.0

    @property
    def drifts(self) -> dict[str, float | None]:
        """Drift of each curve in both definitions, as `NAME.share` and `NAME.seconds`."""
        found: dict[str, float | None] = {}
        for name in DRIFTS:
            curve, rate = self.curve(name)
            if curve:
                drift = first_last(curve, rate)
                found[f"{name}.share"], found[f"{name}.seconds"] = drift.share, drift.seconds
        return found

    @property
    def notes(self) -> list[str]:
        """What measures say about this video."""
        return [note for scores in self.scores.values() for note in scores.notes]


def by_start(videos: Sequence[ScoredVideo], name: str, drift: bool = False) -> dict[str, float]:
    """Return a number for each start image: the mean of its samples, because samples of one image are not independent.

    Args:
        videos: the videos of a folder.
        name: name of the number, or of the drift.
        drift: whether it is a drift.
    """
    groups: dict[str, list[float]] = {}
    for video in videos:
        value = video.drifts.get(name) if drift else video.value(name)
        if value is not None and isfinite(value):
            groups.setdefault(video.item.start, []).append(value)
    return {start: sum(values) / len(values) for start, values in groups.items()}


def figure(values: Mapping[str, float]) -> dict[str, Any] | None:
    """Return mean, 95 % interval and number of start images; None without a value.

    Args:
        values: a number for each start image.
    """
    numbers = torch.tensor(list(values.values()), dtype=torch.float64)
    if not len(numbers):
        return None
    if len(numbers) < 2:
        return {"mean": float(numbers[0]), "low": None, "high": None, "n": 1}
    interval = bootstrap(numbers, torch.Generator().manual_seed(_SEED))
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": len(numbers)}


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any] | None:
    """Return the paired difference `ours - theirs` over the start images that both have.

    Args:
        ours: a number for each start image.
        theirs: those of the other folder.
    """
    return figure({start: ours[start] - theirs[start] for start in ours if start in theirs})


def set_distance(
    distance: SetDistance, measure: Measure, videos: Sequence[ScoredVideo], reference: Sequence[ScoredVideo]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the Frechet distance of a folder to the reference, and warnings.

    Args:
        distance: which one.
        measure: the measure that gave the features.
        videos: the folder's videos.
        reference: the reference's.

    Returns:
        The distance, the numbers of vectors, and the distance of two halves of the reference; None if there are too
        few.
    """
    ours, theirs = (_features(measure.key, distance.features, some) for some in (videos, reference))
    title = distance.column.title
    if ours is None or theirs is None or min(len(ours), len(theirs)) < 2:
        counts = [0 if some is None else len(some) for some in (ours, theirs)]
        return None, [f"{title}: {counts[0]} and {counts[1]} feature vectors, at least 2 of each are needed."]
    warnings = []
    fewest = min(len(ours), len(theirs))
    if fewest < distance.needed:
        warnings.append(
            f"{title}: {len(ours)} feature vectors against {len(theirs)}. With fewer than {distance.needed}, which is "
            f"their length, a Frechet distance is mostly error. Compare only folders with the same N, and look at the "
            f"floor: the distance of two halves of the reference."
        )
    for name, some in (("this folder", ours), ("the reference", theirs)):
        if not some.isfinite().all():
            return None, [*warnings, f"{title}: features of {name} are not finite, so there is no distance."]
    floor = None
    if len(theirs) >= 4:
        floor = halves_distance(theirs, torch.Generator().manual_seed(_SEED))
    return {
        "value": frechet_distance(ours, theirs),
        "n": len(ours),
        "n_reference": len(theirs),
        "floor": floor,
    }, warnings


def _features(key: str, name: str, videos: Sequence[ScoredVideo]) -> torch.Tensor | None:
    found = [video.scores[key].features[name] for video in videos if name in _of(video, key)]
    return torch.cat(found) if found else None


def _of(video: ScoredVideo, key: str) -> Mapping[str, torch.Tensor]:
    return video.scores[key].features if key in video.scores else {}


def facts_of(videos: Sequence[ScoredVideo]) -> dict[str, Any]:
    """Return what decides whether figures of two folders may be compared: N, length, frame rate, size, codec and crf.

    Args:
        videos: the videos of a folder.
    """
    read = [video for video in videos if video.facts]
    return {
        "videos": len(videos),
        "scored": len(read),
        "starts": len({video.item.start for video in read}),
        "frames": _counted(video.facts["frames"] for video in read),
        "fps": _counted(f"{video.facts['fps']:.5g}" for video in read),
        "size": _counted(f"{video.facts['width']}x{video.facts['height']}" for video in read),
        "encoding": _counted(_encoding(video.facts) for video in read),
    }


def _encoding(facts: Mapping[str, Any]) -> str:
    return facts["codec"] if facts["crf"] is None else f"{facts['codec']} crf {facts['crf']:g}"


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def comparability(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return warnings about folders whose videos differ in length, frame rate, size or encoding.

    Args:
        facts: `facts_of` each folder, by name.
    """
    warnings = []
    for kind, title in (("frames", "length"), ("fps", "frame rate"), ("size", "size"), ("encoding", "encoding")):
        most = {name: next(iter(some[kind]), "none") for name, some in facts.items()}
        if len(set(most.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in most.items())
            warnings.append(f"The folders differ in {title} ({listed}). Most measures depend on it.")
    few = [f"{name} {some['starts']}" for name, some in facts.items() if 0 < some["starts"] < _FEW_STARTS]
    if few:
        warnings.append(
            f"Few start images ({', '.join(few)}). With fewer than {_FEW_STARTS}, intervals are too narrow."
        )
    return warnings


def columns_of(measures: Sequence[Measure]) -> list[Column]:
    """Return all numbers of single videos.

    Args:
        measures: the measures.
    """
    return [column for measure in measures for column in measure.columns]

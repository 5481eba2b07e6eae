"""What a measure says of one video, and its file in the cache."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.files import atomic_file


@dataclass
class Scores:
    """What a measure says of one video.

    Attributes:
        values: numbers by name; None where the video gives none, such as a blink rate without a face.
        curves: values over time by name; NaN where a frame gives none.
        rate: values of the curves per second.
        features: feature vectors `[N, D]` by name, for distances between sets.
        pictures: pictures `[H, W, 3]`, uint8, by name, such as the worst moment.
        notes: sentences about this video for the result.
        left_out: why the measure cannot score the video; None if it did.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    rate: float = 0.0
    features: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: str | None = None


def save_scores(path: Path, scores: Scores, facts: Mapping[str, Any]) -> None:
    """Write scores as one safetensors file, with everything but tensors as JSON in its metadata.

    Args:
        path: the file to write, atomically.
        scores: the scores.
        facts: the video's facts.
    """
    text = {
        "values": {name: _number(value) for name, value in scores.values.items()},
        "curves": {name: [_number(value) for value in curve] for name, curve in scores.curves.items()},
        "rate": scores.rate,
        "notes": scores.notes,
        "left_out": scores.left_out,
        "facts": dict(facts),
    }
    tensors = {f"features/{name}": value.contiguous() for name, value in scores.features.items()}
    tensors |= {f"pictures/{name}": value.contiguous() for name, value in scores.pictures.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {"scores": json.dumps(text)})


def is_complete(path: Path) -> bool:
    """Return whether a file of scores is there and complete. A file that was cut off is not.

    Args:
        path: a file of `save_scores`.
    """
    try:
        with safe_open(path, "pt") as file:
            return "scores" in file.metadata()
    except Exception:  # whatever a file that was cut off raises
        return False


def load_scores(path: Path) -> tuple[Scores, dict[str, Any]] | None:
    """Read scores and the video's facts; None if there is no such file or it is damaged, so that it is made again.

    Args:
        path: a file of `save_scores`.
    """
    try:
        with safe_open(path, "pt") as file:
            text = json.loads(file.metadata()["scores"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:  # whatever a file that was cut off raises
        return None

    def part(kind: str) -> dict[str, Tensor]:
        return {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{kind}/")}

    curves = {
        name: [float("nan") if value is None else value for value in curve] for name, curve in text["curves"].items()
    }
    scores = Scores(
        *(text["values"], curves, text["rate"], part("features"), part("pictures")), text["notes"], text["left_out"]
    )
    return scores, text["facts"]


def _number(value: float | None) -> float | None:
    """Return a number for JSON, which knows no NaN."""
    return None if value is None or not isfinite(value) else float(value)

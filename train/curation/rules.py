"""The rules of a review: limits of measures, read from a YAML file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from magicdistill_core.errors import cause

from .copies import copy_bits
from .manifest import Manifest, Row
from .packages import CurationError

DEFAULT = Path(__file__).with_name("rules.yaml")
DAMAGED, COPIES = "damaged", "copy_bits"

MEASURES = {
    "seconds": "length of the shot in seconds",
    "width": "width of the video in pixels",
    "height": "height of the video in pixels",
    "fps": "frames per second",
    "uneven": "share of frames that are shown longer or shorter than usual (variable frame rate)",
    "rotation": "degrees by which a player turns the video",
    "hdr": "1 if the video is HDR (PQ or HLG), which is mapped to usual brightness",
    "sound": "1 if the video has a sound track",
    "loudness": "level of the sound in dB of the full scale; -120 is silence",
    "face_share": "share of the samples that show a face",
    "faces": "number of faces in the frame",
    "same_face": "share of samples in which the face is where it was before, so that it is the same",
    "face_pixels": "height of the face in pixels, from chin to hairline",
    "face_height": "height of the face as a share of the frame's height",
    "face_x": "middle of the face, from 0 (left) to 1 (right)",
    "face_y": "middle of the face, from 0 (top) to 1 (bottom)",
    "face_motion": "movement of the face's landmarks in heights of the face per second",
    "camera_motion": "movement of the background in frame widths per second",
    "sharpness": "share of fine detail in the face; a blurred face has less",
    "brightness": "mean brightness of the face, from 0 to 1",
    "dark": "share of the face's pixels that are black",
    "bright": "share of the face's pixels that are white",
    "joined": "how clear a straight border between pictures side by side is, from 0 to 1",
    "text": "share of the frame that looks like lines of printed text",
    "bars": "share of the frame that is black bars at its borders",
    COPIES: "bits of 64 by which its perceptual hashes differ from a better kept shot of another video",
}
"""The measures that rules can limit, with their descriptions."""


class Limits(BaseModel):
    """The limits of a measure; None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: float | None = None
    most: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Limits":
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least ({self.least:g}) is larger than most ({self.most:g})")
        return self

    def hold(self, value: float | None) -> bool:
        """Return whether a value is within the limits; an unknown one is.

        Args:
            value: the measure; None is unknown.
        """
        if value is None:
            return True
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def distance(self, value: float) -> float:
        """Return how far a value is from the nearest limit.

        Args:
            value: the measure.
        """
        return min((abs(value - limit) for limit in (self.least, self.most) if limit is not None), default=math.inf)

    def __str__(self) -> str:
        parts = [("at least", self.least), ("at most", self.most)]
        return " and ".join(f"{word} {limit:g}" for word, limit in parts if limit is not None) or "no limit"


Rules = Mapping[str, Limits]
"""Limits by measure."""


class Verdict(NamedTuple):
    """What the rules say about a shot.

    Attributes:
        row: its row, with `copy_bits` if that was computed.
        reasons: names of the rules that drop it; none if it is kept.
    """

    row: Row
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """The verdicts about all shots of a manifest.

    Attributes:
        verdicts: one for each row, in the manifest's order.
    """

    verdicts: Sequence[Verdict]

    @property
    def kept(self) -> list[Row]:
        """The rows of the kept shots."""
        return [verdict.row for verdict in self.verdicts if not verdict.reasons]

    def dropped_by(self, rule: str) -> list[Row]:
        """Return the rows of the shots that a rule drops.

        Args:
            rule: name of the rule.
        """
        return [verdict.row for verdict in self.verdicts if rule in verdict.reasons]

    def only_by(self, rule: str) -> int:
        """Return how many shots this rule alone drops.

        Args:
            rule: name of the rule.
        """
        return sum(verdict.reasons == (rule,) for verdict in self.verdicts)


def read_rules(path: Path = DEFAULT) -> dict[str, Limits]:
    """Read a file of rules.

    Args:
        path: a YAML file of measures with their limits, such as `seconds: {least: 1}`.

    Raises:
        CurationError: if it cannot be read, or has an unknown measure or a limit that is no number.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise CurationError(f"The rules {path} cannot be read ({cause(error)}). Expected a YAML file.") from error
    if not isinstance(tree, dict):
        raise CurationError(f"The rules {path} are {tree!r:.40}, expected measures such as `seconds: {{least: 1}}`.")
    if unknown := [str(name) for name in tree if name not in MEASURES]:
        raise CurationError(
            f"The rules {path} limit {', '.join(unknown)}, which no scan measures. Expected {', '.join(MEASURES)}."
        )
    rules = {}
    for name, limits in tree.items():
        try:
            rules[name] = Limits.model_validate({} if limits is None else limits)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CurationError(
                f"The rule {name} of {path} is {limits!r:.60} ({first['msg']}). Expected numbers, such as "
                f"{name}: {{least: 1, most: 2}}."
            ) from error
    return rules


def apply_rules(manifest: Manifest, rules: Rules) -> Review:
    """Return the verdict about every shot.

    Copies are looked for among the shots that all other rules keep. Of shots that look alike the largest is kept.

    Args:
        manifest: the scan.
        rules: the limits.
    """
    reasons = [_reasons(row, rules) for row in manifest.rows]
    rows = list(manifest.rows)
    if COPIES in rules:
        places = [place for place, found in enumerate(reasons) if not found]
        for place, bits in zip(places, copy_bits([rows[place] for place in places]), strict=True):
            rows[place] = rows[place] | {COPIES: bits}
            if not rules[COPIES].hold(bits):
                reasons[place] = (COPIES,)
    return Review([Verdict(row, found) for row, found in zip(rows, reasons, strict=True)])


def _reasons(row: Row, rules: Rules) -> tuple[str, ...]:
    if row["error"] is not None:
        return (DAMAGED,)
    return tuple(name for name, limits in rules.items() if name != COPIES and not limits.hold(row[name]))

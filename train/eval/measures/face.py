"""Measures of portraits: blinks, mouth, head, gaze, the face in every frame, and the identity over time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.media.video import read_image, resize_crop
from magicdistill_core.metrics.face_motion import find_blinks, measure_head, measure_mouth, rotation_angle

from ..folders import Item
from ..frames import VideoFacts
from ..networks.dlib_face import SAME_PERSON, FaceDescriptor
from ..networks.landmarks import Face, Landmarker
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Sampled, Start, with_short_side
from .reference import ReferenceFrames

FindFace = Callable[[Tensor], Face | None]
Describe = Callable[[Tensor, Face], Tensor]

_NAN = float("nan")
_IDENTITY_PER_SECOND = 2
_PICTURE_SIDE = 256


class FaceMotion:
    """Landmarks of every frame."""

    def __init__(self, find: FindFace, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            find: returns the largest face of a frame.
            facts: the video's facts.
        """
        self._find, self._rate = find, facts.fps
        self._faces: list[Face | None] = []

    def add(self, frames: Tensor) -> None:
        self._faces += [self._find(frame) for frame in frames]

    def finish(self) -> Scores:
        faces, fps = self._faces, self._rate
        present = sum(face is not None for face in faces) / len(faces)
        if not present:
            raise NotScoredError("no face was found in any frame")
        eyes = [_NAN if face is None else face.eyes for face in faces]
        mouth = [_NAN if face is None else face.mouth for face in faces]
        nowhere = torch.full((3, 3), torch.nan)
        rotations = torch.stack([nowhere if face is None else face.rotation.float() for face in faces])
        gaze = torch.tensor([(_NAN, _NAN) if face is None else face.gaze for face in faces])
        blinks = find_blinks(torch.tensor(eyes), fps)
        moved, head = measure_mouth(torch.tensor(mouth), fps), measure_head(rotations, fps)
        two = sum(face is not None and face.count > 1 for face in faces)
        notes = []
        if present < 1:
            lost = next(place for place, face in enumerate(faces) if face is None)
            notes.append(f"no face in {1 - present:.0%} of the frames, the first one is frame {lost}")
        if two:
            notes.append(f"two faces in {two / len(faces):.0%} of the frames; the larger one was measured")
        return Scores(
            {
                "face_present": present,
                "blinks": blinks.rate,
                "blink_completeness": _mean(blinks.completeness),
                "eyes_closed": blinks.closed,
                "mouth_opening": moved.opening,
                "mouth_range": moved.range,
                "mouth_per_second": moved.per_second,
                "mouth_speech": moved.speech,
                "head_yaw": head.yaw,
                "head_pitch": head.pitch,
                "head_roll": head.roll,
                "head_speed": head.speed,
                "head_jump": head.jerk,
                "gaze_range": _range(gaze[:, 0]),
            },
            {"eyes": eyes, "mouth": mouth},
            fps,
            notes=notes,
        )


class ExpressionDistance:
    """How far expression and pose are from those of the reference at the same moment."""

    def __init__(self, find: FindFace, item: Item, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            find: returns the largest face of a frame.
            item: the video and its reference.
            facts: the video's facts.
        """
        self._find, self._rate = find, facts.fps
        self._reference = ReferenceFrames(item, facts)
        self._expression: list[float] = []
        self._pose: list[float] = []

    def add(self, frames: Tensor) -> None:
        for ours, theirs in zip(*self._reference.like(frames), strict=True):
            a, b = self._find(ours), self._find(theirs)
            self._expression.append(float((a.blendshapes - b.blendshapes).abs().mean()) if a and b else _NAN)
            self._pose.append(float(rotation_angle(a.rotation[None], b.rotation[None])) if a and b else _NAN)

    def finish(self) -> Scores:
        expression, pose = _mean(self._expression), _mean(self._pose)
        if expression is None:
            raise NotScoredError("in no frame is there a face in both the video and its reference")
        curves = {"expression_distance": self._expression, "pose_distance": self._pose}
        return Scores({"expression_distance": expression, "pose_distance": pose}, curves, self._rate)


class Identity:
    """How far the face is from that of the start image, or of the first frame with a face."""

    def __init__(self, find: FindFace, describe: Describe, item: Item, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            find: returns the largest face of a frame.
            describe: returns the descriptor of a face.
            item: the video and its start image.
            facts: the video's facts.
        """
        self._find, self._describe = find, describe
        self._chosen = Sampled(round(facts.fps / _IDENTITY_PER_SECOND))
        self._rate = facts.fps / self._chosen.step
        self._start: Tensor | None = None
        self._notes: list[str] = []
        if item.image is not None:
            image = resize_crop(read_image(item.image), facts.height, facts.width)
            if (face := find(image)) is not None:
                self._start = describe(image, face)
            else:
                self._notes.append("no face in the start image; the identity is compared with the first face")
        self._curve: list[float] = []
        self._worst: tuple[float, Tensor] | None = None

    def add(self, frames: Tensor) -> None:
        for frame in self._chosen(frames):
            face = self._find(frame)
            if face is None:
                self._curve.append(_NAN)
                continue
            descriptor = self._describe(frame, face)
            if self._start is None:
                self._start = descriptor
            distance = float((descriptor - self._start).norm())
            self._curve.append(distance)
            if self._worst is None or distance > self._worst[0]:
                self._worst = (distance, frame.clone())

    def finish(self) -> Scores:
        mean = _mean(self._curve)
        if mean is None or self._worst is None:
            raise NotScoredError("no face was found in any frame that was looked at")
        distance, frame = self._worst
        place = self._curve.index(distance)
        seen = [value for value in self._curve if value == value]
        if distance > SAME_PERSON:
            self._notes.append(
                f"another person: the face is {distance:.2f} from the start at {place / self._rate:.1f} s, above "
                f"dlib's limit of {SAME_PERSON}"
            )
        small = (255 * with_short_side(frame[None], _PICTURE_SIDE)[0]).round().to(torch.uint8).movedim(0, -1)
        return Scores(
            {
                "identity_distance": mean,
                "identity_worst": distance,
                "identity_lost": sum(value > SAME_PERSON for value in seen) / len(seen),
            },
            {"identity_distance": self._curve},
            self._rate,
            pictures={"identity_worst": small},
            notes=self._notes,
        )


def _mean(values: list[float]) -> float | None:
    seen = [value for value in values if value == value]
    return sum(seen) / len(seen) if seen else None


def _range(values: Tensor) -> float:
    seen = values[values.isfinite()]
    low, high = torch.quantile(seen, torch.tensor([0.05, 0.95]))
    return float(high - low)


def _make_motion(files: Mapping[str, Path], _device: torch.device) -> Start:
    find = Landmarker(files["landmarks"])
    return lambda _item, facts: FaceMotion(find, facts)


def _make_expression(files: Mapping[str, Path], _device: torch.device) -> Start:
    find = Landmarker(files["landmarks"])
    return lambda item, facts: ExpressionDistance(find, item, facts)


def _make_identity(files: Mapping[str, Path], _device: torch.device) -> Start:
    find, describe = Landmarker(files["landmarks"]), FaceDescriptor(files["dlib"])
    return lambda item, facts: Identity(find, describe, item, facts)


FACE_MOTION = Measure(
    "face",
    "face",
    (
        Column("face_present", "face present (share)", "higher", 3),
        Column("blinks", "blinks a minute", "", 1),
        Column("blink_completeness", "blink completeness", "", 2),
        Column("eyes_closed", "eyes closed (share)", "", 3),
        Column("mouth_opening", "mouth opening", "", 3),
        Column("mouth_range", "range of the opening", "", 3),
        Column("mouth_per_second", "openings a second", "", 2),
        Column("mouth_speech", "share at 2-7 Hz", "", 2),
        Column("head_yaw", "yaw range (°)", "", 1),
        Column("head_pitch", "pitch range (°)", "", 1),
        Column("head_roll", "roll range (°)", "", 1),
        Column("head_speed", "head speed (°/s)", "", 1),
        Column("head_jump", "largest head jump (°)", "lower", 1),
        Column("gaze_range", "gaze range", "", 2),
    ),
    _make_motion,
    ("landmarks",),
)
EXPRESSION = Measure(
    "expression",
    "reference",
    (
        Column("expression_distance", "expression distance (52 blendshapes)", "lower", 4),
        Column("pose_distance", "pose distance (°)", "lower", 2),
    ),
    _make_expression,
    ("landmarks",),
    uses_reference=True,
)
IDENTITY = Measure(
    "identity",
    "face",
    (
        Column("identity_distance", "identity distance (dlib)", "lower", 3),
        Column("identity_worst", "worst moment", "lower", 3),
        Column("identity_lost", "share above 0.6", "lower", 3),
    ),
    _make_identity,
    ("landmarks", "dlib"),
    uses_image=True,
)

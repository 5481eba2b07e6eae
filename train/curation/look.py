"""Looking at one video: its shots and their measures."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from magicdistill_core.errors import VideoError, cause
from magicdistill_core.media.audio import read_audio
from magicdistill_core.media.hdr import HDR_TRANSFERS
from magicdistill_core.media.opening import Media
from magicdistill_core.media.stream import DecodedFrame, FrameStream, decode_stream

from .faces import FaceDetector
from .manifest import Row
from .measures import Content
from .samples import Sample, Sampler
from .shots import LONGEST_SIDE, ShotDetector

# The measures need some pixels. No face is recognisable in fewer.
LEAST_PIXELS = 64
_HASHES, _THUMBNAILS = 5, 4
_BIN_SECONDS = 0.1
_SILENCE = -120.0
# A frame that is shown for more than this share longer or shorter than usual is uneven.
_UNEVEN = 0.35


def look(path: Path, detector: FaceDetector) -> list[Row]:
    """Return a row for each shot of a video, and a last one with the error if it is damaged.

    Args:
        path: the video file.
        detector: finds the faces.

    Returns:
        Rows as in `manifest.py`, without the identity of the video.
    """
    rows: list[Row] = []
    try:
        rows = _Look(path, detector).rows
    except VideoError as error:
        rows.append({"error": str(error)})
    except Exception as error:
        # One odd video must not end the scan of the others.
        rows.append({"error": f"{path} cannot be looked at ({type(error).__name__}: {cause(error)})."})
    return [row | {"shot": number} for number, row in enumerate(rows)]


class _Look:
    def __init__(self, path: Path, detector: FaceDetector) -> None:
        stream = decode_stream(path)
        height, width = stream.first.pixels(None).shape[:2]
        if min(height, width) < LEAST_PIXELS:
            raise VideoError(f"{path} is {width} x {height} pixels, expected at least {LEAST_PIXELS} on each side.")
        self._times: list[float] = []
        self._breaks: dict[int, str] = {0: "start"}
        self._samples: list[Sample] = []
        error = self._read(stream, detector)
        facts = _facts(path) | {"width": width, "height": height, "fps": float(stream.pace.rate)}
        facts["uneven"] = _uneven(self._times, set(self._breaks))
        facts["notes"] = " ".join(note.removeprefix(f"{path} ") for note in stream.notes) or None
        levels = _levels(path) if facts["sound"] else None
        self._interval = stream.pace.interval
        starts = sorted(self._breaks)
        self.rows = [
            facts | self._shot(first, last, facts, levels)
            for first, last in zip(starts, [*(start - 1 for start in starts[1:]), len(self._times) - 1], strict=True)
        ]
        if error is not None:
            self.rows.append({"error": error})

    def _read(self, stream: FrameStream[DecodedFrame], detector: FaceDetector) -> str | None:
        """Read all frames; return why it ended early, or None."""
        shots, sampler = ShotDetector(), Sampler(detector)
        shape, error = None, None
        try:
            for number, decoded in enumerate(stream.frames):
                reduced = decoded.pixels(LONGEST_SIDE).numpy()
                if decoded.gap or reduced.shape != (shape or reduced.shape):
                    self._breaks[number] = "gap"
                    sampler.cut()
                shape = reduced.shape
                shots.add(reduced)
                if sampler.due(decoded.time):
                    self._samples.append(sampler.take(number, decoded.time, decoded.pixels(None).numpy()))
                self._times.append(decoded.time)
        except VideoError as damage:  # what was read before is usable
            error = str(damage)
        for cut in shots.cuts():
            self._breaks.setdefault(cut, "cut")
        return error

    def _shot(self, first: int, last: int, facts: Row, levels: NDArray[np.float64] | None) -> Row:
        samples = [sample for sample in self._samples if first <= sample.frame <= last]
        start, end = self._times[first], self._times[last] + self._interval
        row: Row = {
            **{"first": first, "last": last, "start": start, "end": end, "seconds": end - start},
            "begins": self._breaks[first],
            "loudness": None if levels is None else _loudness(levels, start, end),
        }
        if not samples:
            return row | {"face_share": 0.0, "faces": 0.0}
        return row | _faces(samples, facts) | _picture(samples) | _evidence(samples)


def _faces(samples: Sequence[Sample], facts: Row) -> Row:
    seen = [sample for sample in samples if sample.faces]
    row: Row = {
        "face_share": len(seen) / len(samples),
        "faces": float(np.percentile([len(sample.faces) for sample in samples], 90, method="higher")),
    }
    if not seen:
        return row
    boxes = np.array([(f.x + f.width / 2, f.y + f.height / 2, f.height) for f in (s.faces[0] for s in seen)])
    x, y, height = np.median(boxes, axis=0)
    # The first sample of a shot is compared with a frame of another one.
    links = [sample.connected for sample in samples[1:] if sample.connected is not None]
    return row | {
        **{"face_x": float(x), "face_y": float(y), "face_height": float(height)},
        "face_pixels": float(height) * facts["height"],
        "same_face": float(np.mean(links)) if links else 1.0,
        "face_motion": _median([sample.motion for sample in samples[1:]]),
    }


def _picture(samples: Sequence[Sample]) -> Row:
    # A bar is a bar if it is always there.
    inside = Content(
        min(sample.content.left for sample in samples),
        min(sample.content.top for sample in samples),
        max(sample.content.right for sample in samples),
        max(sample.content.bottom for sample in samples),
    )
    return {
        **{name: _median([getattr(s, name) for s in samples]) for name in ("sharpness", "brightness", "joined")},
        **{name: _median([getattr(s, name) for s in samples]) for name in ("dark", "bright")},
        # A title is often shown for a part of a shot only.
        "text": float(np.percentile([sample.text for sample in samples], 75, method="higher")),
        "camera_motion": _median([sample.camera for sample in samples[1:]]),
        "bars": 1 - (inside.right - inside.left) * (inside.bottom - inside.top),
        **inside._asdict(),
    }


def _evidence(samples: Sequence[Sample]) -> Row:
    def spread(count: int) -> list[Sample]:
        return [samples[int((2 * place + 1) * len(samples) / (2 * count))] for place in range(count)]

    boxes = [
        {"frame": sample.frame, "time": sample.time}
        | ({} if not sample.faces else {side: getattr(sample.faces[0], side) for side in ("x", "y", "width", "height")})
        for sample in samples
    ]
    return {
        "hashes": [sample.hash for sample in spread(_HASHES)],
        "samples": boxes,
        "thumbnails": [sample.thumbnail for sample in spread(_THUMBNAILS)],
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _uneven(times: Sequence[float], breaks: set[int]) -> float:
    """Return the share of frames that are shown longer or shorter than usual."""
    steps = np.array([b - a for n, (a, b) in enumerate(pairwise(times), 1) if n not in breaks])
    if not len(steps):
        return 0.0
    usual = float(np.median(steps))
    return float((np.abs(steps - usual) > _UNEVEN * usual).mean())


def _facts(path: Path) -> Row:
    """Return what the container and the first frame state."""
    with Media(path) as media:
        sound = any(stream.codec_context is not None for stream in media.container.streams.audio)
        stream = media.container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        codec = stream.codec_context
        frame = next(media.container.decode(stream))
        return {
            **{"codec": codec.name, "sound": sound, "hdr": codec.color_trc in HDR_TRANSFERS},
            "rotation": round(frame.rotation) % 360,
        }


def _levels(path: Path) -> NDArray[np.float64] | None:
    """Return the mean squares of the sound in steps of 0.1 s; None if it cannot be decoded."""
    try:
        audio = read_audio(path)
        if audio is None:
            return None
        size = max(1, round(audio.rate * _BIN_SECONDS))
        squares, rest = list[float](), np.zeros(0, np.float32)
        for chunk in audio.chunks:
            rest = np.concatenate([rest, chunk.mean(axis=0)])
            whole = len(rest) // size * size
            squares += (rest[:whole].astype(np.float64).reshape(-1, size) ** 2).mean(axis=1).tolist()
            rest = rest[whole:]
    except VideoError:
        return None
    return np.array(squares)


def _loudness(levels: NDArray[np.float64], start: float, end: float) -> float:
    """Return the mean level of a shot in dB of the full scale; -120 is silence."""
    part = levels[math.floor(start / _BIN_SECONDS) : max(math.ceil(end / _BIN_SECONDS), 1)]
    power = float(part.mean()) if len(part) else 0.0
    return max(_SILENCE, 10 * math.log10(power)) if power > 0 else _SILENCE

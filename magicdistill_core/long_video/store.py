"""The segments of long videos on disk. A segment that is there, and is what it was, is not made again.

A segment's *key* is the hash of what determines its attempts: the model, the settings, its own prompt and seed, and the
segment before it. Other settings make other keys, so a folder can hold the segments of several versions of a video.
Limits only choose among the attempts, so they are not in the key.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, VideoError
from ..files import write_text
from ..hashes import file_sha256
from ..safetensors_file import explained_writing, read_tensors, write_safetensors
from .drift import FrameNumbers

_LATENTS, _TAIL = "latents", "tail"


def segment_key(run: Mapping[str, Any], number: int, own: Mapping[str, Any], before: str) -> str:
    """Return the key of a segment: 64 hexadecimal digits.

    Args:
        run: what determines all segments, such as the model's hash and the size.
        number: number of the segment, from 0.
        own: what determines this segment, such as its seed and its prompt.
        before: the key of the segment before it with the number of its attempt; "" for the first one.
    """
    text = json.dumps([dict(run), number, dict(own), before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Segment:
    """What is known of a segment on disk.

    Attributes:
        key: its key.
        number: its number, from 0.
        attempts: seed, drift (`Drift` as a dict) and excess of every attempt, in their order.
        chosen: number of the attempt that is kept.
        numbers: the numbers of all its frames but the dropped ones.
        hashes: sha256 of its files, by their names.
    """

    key: str
    number: int
    attempts: list[dict[str, Any]]
    chosen: int
    numbers: FrameNumbers
    hashes: dict[str, str] = field(default_factory=dict)


class SegmentStore:
    """A folder of segments. Each has three files: its latents, its pictures as mp4, and what is known of it as JSON."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created with the first segment."""
        self.folder = folder

    def _file(self, number: int, key: str, suffix: str) -> Path:
        return self.folder / f"{number + 1:04d}-{key[:16]}{suffix}"

    def part(self, segment: Segment, frames: int, crf: float) -> Path:
        """Return the path of the mp4 file with the first frames of a segment at a quality."""
        return self._file(segment.number, segment.key, f"-{frames}-crf{crf:g}.mp4")

    def find(self, number: int, key: str) -> tuple[Segment | None, str]:
        """Look for a segment, and check that its latents are what they were.

        Args:
            number: its number, from 0.
            key: its key.

        Returns:
            The segment, or None; and a sentence for the user if there was one that cannot be used, else "".
        """
        path = self._file(number, key, ".json")
        if not path.exists():
            return None, ""
        name = f"Segment {number + 1}"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            segment = Segment(**{**values, "numbers": FrameNumbers(**values["numbers"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None, f"{name} is made again: {path.name} is damaged."
        latents = self._file(number, key, ".safetensors")
        if not latents.exists():
            return None, f"{name} is made again: {latents.name} was deleted."
        if segment.key != key or file_sha256(latents) != segment.hashes.get(latents.name):
            return None, f"{name} is made again: {latents.name} is not the file that was written."
        return segment, ""

    def is_intact(self, segment: Segment, path: Path) -> bool:
        """Return whether a file of a segment is there, and is what it was."""
        return path.exists() and file_sha256(path) == segment.hashes.get(path.name)

    def latents(self, segment: Segment) -> Tensor:
        """Return the latents of a segment, as they were sampled."""
        return self._read(segment)[_LATENTS]

    def tail(self, segment: Segment) -> Tensor:
        """Return the last frames of a segment, `[N, H, W, 3]` in [0, 1], from which the next one starts."""
        return self._read(segment)[_TAIL]

    def _read(self, segment: Segment) -> dict[str, Tensor]:
        return read_tensors(self._file(segment.number, segment.key, ".safetensors"))[0]

    def keep(self, segment: Segment, latents: Tensor, tail: Tensor) -> Segment:
        """Write a new segment, without its mp4 file. It counts as kept when its JSON is written.

        Args:
            segment: the segment.
            latents: its latents.
            tail: its last frames.

        Returns:
            The segment with the hash of its file.

        Raises:
            VideoError: if the disk is full, or the folder cannot be written.
        """
        path = self._file(segment.number, segment.key, ".safetensors")
        tensors = {_LATENTS: latents.cpu().contiguous(), _TAIL: tail.to(torch.float32).contiguous()}
        with self._explained(segment):
            write_safetensors(path, tensors, {"format": "pt", "key": segment.key})
        return self.note(segment, path)

    def note(self, segment: Segment, path: Path) -> Segment:
        """Write what is known of a segment, with the hash of one more of its files; return the segment with it.

        Raises:
            VideoError: if the disk is full, or the folder cannot be written.
        """
        known = replace(segment, hashes=segment.hashes | {path.name: file_sha256(path)})
        file = self._file(segment.number, segment.key, ".json")
        with self._explained(segment), explained_writing(file):
            write_text(file, json.dumps(asdict(known)))
        return known

    @contextmanager
    def _explained(self, segment: Segment) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            raise VideoError(
                f"Segment {segment.number + 1} cannot be kept: {error} The {segment.number} segments before it are in "
                f"{self.folder}. Free some space and run again with the same settings: they are not made again."
            ) from error

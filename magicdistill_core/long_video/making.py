"""Make a long video: sample, join and write its segments one after another, and go on where a run was stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import VideoError
from ..hashes import tensors_sha256
from ..media.audio import Audio
from ..media.joined_video import growing_video, join_videos
from ..media.video_writing import write_video
from .drift import (
    Drift,
    Embedder,
    FrameNumbers,
    Limits,
    drift_between,
    embedding_of,
    first_numbers,
    numbers_of,
    video_drift,
)
from .joining import colours_of, cross_fade, late_frames, matched
from .opening import Opening
from .plan import Plan
from .store import Segment, SegmentStore, segment_key

SEGMENTS_TAG = "magicdistill.segments"
_SEEDS = 2**63


class SegmentModel(Protocol):
    """What makes the frames of one segment: a model with its VAE and its prompts."""

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        """Sample the latents of a segment.

        Args:
            start: the frames from which it starts, `[N, H, W, 3]` in [0, 1]: the portrait, or the last frames of the
                segment before it. A model that starts from one frame uses the first of them.
            number: number of the segment, from 0.
            seed: the seed of its noise.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the latents of a segment to frames `[T, H, W, 3]` in [0, 1] on the CPU."""


@dataclass(frozen=True)
class LongSettings:
    """The settings of a long video.

    Attributes:
        run: what determines all segments besides these settings, such as the model's hash and the steps.
        fps: frames per second.
        seed: seed of the first segment. The seeds of the others follow from it.
        seeds: seeds of single segments instead, by number from 0.
        prompts: what identifies the prompt of each segment; empty if all have the same.
        match_colours: whether the colours of each segment return to the portrait's.
        limits: when a segment is made again.
        retries: how often a segment is made again at most.
        crf: quality of the file, on x264's scale.
        tags: text entries to store in the file, next to the record of the segments; None stores neither.
    """

    run: Mapping[str, Any]
    fps: Fraction
    seed: int = 0
    seeds: Mapping[int, int] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    match_colours: bool = True
    limits: Limits = field(default_factory=Limits)
    retries: int = 2
    crf: float = 18
    tags: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True)
class LongVideo:
    """A long video that was made.

    Attributes:
        path: its file.
        frames: number of frames.
        drift: what changed from its first 15 % to its last 15 %.
        segments: one entry per segment: its number from 1, its first frame, its seed, its prompt, how far its last
            frames were from the portrait before the colours were corrected (`Drift`), its attempts, and whether it was
            made in this run.
        notes: sentences for the user.
    """

    path: Path
    frames: int
    drift: Drift
    segments: list[dict[str, Any]]
    notes: list[str]

    @property
    def report(self) -> str:
        """The drift as one line of text for people."""
        return f"Drift from the first 15 % to the last: {self.drift.line()}"

    def record(self) -> dict[str, Any]:
        """Return drift and segments for a JSON file."""
        return {
            "frames": self.frames,
            "report": self.report,
            "drift": asdict(self.drift),
            "segments": self.segments,
        }


def unfinished_file(path: Path) -> Path:
    """Return the path of the video as far as it is made, next to the complete video `path`."""
    return path.with_name(f"{path.stem}.unfinished{path.suffix}")


def seed_of(settings: LongSettings, number: int, attempt: int) -> int:
    """Return the seed of one attempt at a segment.

    The first attempt at the first segment has the video's own seed, so that it equals a short video of this seed.

    Args:
        settings: the seeds of the video and of single segments.
        number: number of the segment, from 0.
        attempt: number of the attempt, from 0.
    """
    base, key = settings.seed, f"{number}/{attempt}"
    if number in settings.seeds:
        base, key = settings.seeds[number], f"0/{attempt}"
    if key == "0/0":
        return base
    digest = hashlib.blake2b(f"{base}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def make_long_video(
    plan: Plan,
    settings: LongSettings,
    model: SegmentModel,
    portrait: Tensor,
    folder: Path,
    path: Path,
    *,
    opening: Opening | None = None,
    audio: Audio | None = None,
    embed: Embedder | None = None,
    said: Callable[[str], None] = lambda text: None,
) -> LongVideo:
    """Make a long video, or go on with one.

    The video as far as it is made is in `unfinished_file(path)`, which is valid after every segment.

    Args:
        plan: how many segments there are, and their frames.
        settings: everything else.
        model: makes a segment.
        portrait: the start image in the video's size, `[H, W, 3]` in [0, 1].
        folder: the folder of the segments.
        path: the mp4 file to write.
        opening: the video to continue, with which the file begins; None begins with the portrait.
        audio: the sound; None for a silent video.
        embed: a network for the identity; None leaves the identity out.
        said: called with a line of text for the user after each segment.

    Raises:
        VideoError: if the disk is full or a file cannot be written. Finished segments are kept.
    """
    makers = _Maker(plan, settings, model, portrait, SegmentStore(folder), embed, opening)
    ahead = 0 if opening is None else opening.frames
    parts: list[Path] = []
    segments: list[dict[str, Any]] = []
    numbers, notes = FrameNumbers([], [], [], [], []), []
    before: Segment | None = None
    growing = unfinished_file(path)
    with growing_video(growing, settings.tags or {}) as video:
        if opening is not None:
            parts.append(opening.part)
            video.append(opening.part)
        for number in range(plan.segments):
            segment, is_new, note = makers.segment(number, before)
            parts.append(makers.part(segment))
            video.append(parts[-1])
            numbers += first_numbers(segment.numbers, plan.shown(number))
            attempt = segment.attempts[segment.chosen]
            segments.append(
                {
                    "segment": number + 1,
                    "first_frame": ahead + plan.first_frame(number),
                    "seed": attempt["seed"],
                    "prompt": settings.prompts[number] if settings.prompts else None,
                    "drift": attempt["drift"],
                    "attempts": segment.attempts,
                    "made": is_new,
                }
            )
            if note:
                notes.append(note)
                said(note)
            tries = f", {len(segment.attempts)} attempts" if len(segment.attempts) > 1 else ""
            kept = "" if is_new else " (kept from before)"
            said(f"segment {number + 1} of {plan.segments}{kept}: {Drift(**attempt['drift']).line()}{tries}")
            before = segment
    drift = video_drift(numbers)
    made = LongVideo(path, ahead + plan.frames, drift, segments, notes)
    tags = {} if settings.tags is None else {**settings.tags, SEGMENTS_TAG: json.dumps(made.record())}
    frames = join_videos(parts, path, tags, audio)
    assert frames == made.frames
    with suppress(OSError):
        growing.unlink()
    return made


class _Maker:
    """Makes single segments of one video."""

    def __init__(
        self,
        plan: Plan,
        settings: LongSettings,
        model: SegmentModel,
        portrait: Tensor,
        store: SegmentStore,
        embed: Embedder | None,
        opening: Opening | None,
    ) -> None:
        self.store = store
        self._plan, self._settings, self._model, self._embed = plan, settings, model, embed
        self._opening = opening
        self._portrait = portrait.float().cpu()
        self._embedding = None if embed is None else embedding_of(self._portrait, embed)
        self._anchor = colours_of(self._portrait[None])
        self._anchor_numbers = numbers_of(self._portrait[None], embed, self._embedding)
        self._run = {
            **settings.run,
            "portrait": tensors_sha256(self._portrait),
            "opening": None if opening is None else opening.key,
            "frames": plan.segment_frames,
            "overlap": plan.overlap,
            "dropped": plan.dropped,
            "match_colours": settings.match_colours,
        }

    def segment(self, number: int, before: Segment | None) -> tuple[Segment, bool, str]:
        """Return a segment with its mp4 file, whether it was sampled now, and a sentence for the user or ""."""
        settings = self._settings
        own = {
            "seed": seed_of(settings, number, 0),
            "prompt": settings.prompts[number] if settings.prompts else "",
        }
        key = segment_key(self._run, number, own, "" if before is None else f"{before.key}/{before.chosen}")
        found, note = self.store.find(number, key)
        if before is not None:
            tail: Tensor | None = self.store.tail(before)
        else:
            tail = None if self._opening is None else self._opening.tail
        if found is None:
            return self._make(number, key, tail, []), True, note
        # Limits and retries are not in the key: a segment that they allow stays, whatever they were when it was made.
        judged = self._judged(found.attempts)
        if self._chosen(judged) != found.chosen:
            return self._make(number, key, tail, judged), True, note
        found = replace(found, attempts=judged)
        unmeasured = self._embed is not None and not found.numbers.identity
        if unmeasured or not self.store.is_intact(found, self.part(found)):
            frames = self._joined(self._model.decode(self.store.latents(found)), tail)
            found = self._write_part(replace(found, numbers=self._numbers(frames)), frames)
        return found, False, note

    def part(self, segment: Segment) -> Path:
        """Return the path of the mp4 file of a segment."""
        return self.store.part(segment, self._plan.shown(segment.number), self._settings.crf)

    def _judged(self, attempts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the attempts that a run with these limits makes first, as the limits judge them.

        These end with the first one within the limits. An attempt whose identity is needed but was not measured has to
        be made again, with all later ones.

        Args:
            attempts: attempts of an earlier run, in their order.
        """
        limits, judged = self._settings.limits, []
        for attempt in attempts[: 1 + self._settings.retries]:
            drift = Drift(**attempt["drift"])
            if limits.identity is not None and self._embed is not None and drift.identity is None:
                break
            judged.append({**attempt, "excess": limits.excess(drift)})
            if not judged[-1]["excess"]:
                break
        return judged

    def _chosen(self, judged: Sequence[dict[str, Any]]) -> int | None:
        """Return the number of the attempt to keep; None if another one has to be made first."""
        excesses = [attempt["excess"] for attempt in judged]
        if not excesses or (excesses[-1] and len(excesses) <= self._settings.retries):
            return None
        return excesses.index(min(excesses))

    def _make(self, number: int, key: str, tail: Tensor | None, attempts: list[dict[str, Any]]) -> Segment:
        """Make a segment: attempts until one is within the limits.

        Args:
            number: number of the segment.
            key: its key.
            tail: the last frames of the segment before it; None for the first one.
            attempts: the first attempts, from `_judged`. Their drifts are known, but not their frames.
        """
        start = self._portrait[None] if tail is None else tail
        best: tuple[int, Tensor, Tensor] | None = None
        while (chosen := self._chosen(attempts)) is None:
            seed = seed_of(self._settings, number, len(attempts))
            latents, decoded = self._sampled(start, number, seed)
            # Before its colours are corrected: afterwards they are always the portrait's.
            late = self._numbers(decoded[-late_frames(len(decoded)) :].clamp(0, 1))
            drift = drift_between(self._anchor_numbers, late)
            excess = self._settings.limits.excess(drift)
            attempts = [*attempts, {"seed": seed, "drift": asdict(drift), "excess": excess}]
            if best is None or excess < attempts[best[0]]["excess"]:
                best = len(attempts) - 1, latents, decoded
        if best is None or best[0] != chosen:
            best = chosen, *self._sampled(start, number, attempts[chosen]["seed"])
        frames = self._joined(best[2], tail)
        segment = Segment(key, number, attempts, chosen, self._numbers(frames))
        kept = self.store.keep(segment, best[1], frames[len(frames) - self._plan.shared :])
        return self._write_part(kept, frames)

    def _sampled(self, start: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the latents of an attempt, and their frames."""
        latents = self._model.sample(start, number, seed)
        if not torch.isfinite(latents).all():
            raise VideoError(
                f"The latents of segment {number + 1} contain NaN or infinite values. The model may overflow in "
                f"fp16: run it in bf16 or fp32. The segments before it are kept."
            )
        return latents, self._model.decode(latents)

    def _numbers(self, frames: Tensor) -> FrameNumbers:
        return numbers_of(frames, self._embed, self._embedding)

    def _joined(self, frames: Tensor, tail: Tensor | None) -> Tensor:
        """Return the frames of a segment without the dropped ones, as they continue the segment before it."""
        plan = self._plan
        frames = frames.float().clamp(0, 1)
        if self._settings.match_colours:
            frames = matched(frames, self._anchor)
        if tail is not None:
            frames[plan.dropped : plan.shared] = cross_fade(tail[plan.dropped :], frames[plan.dropped : plan.shared])
        return frames[plan.dropped :]

    def _write_part(self, segment: Segment, frames: Tensor) -> Segment:
        path = self.part(segment)
        shown = frames[: self._plan.shown(segment.number)]
        write_video(path, shown, self._settings.fps, crf=self._settings.crf)
        return self.store.note(segment, path)

"""What the reader can do, measured on people that no training has seen: its errors, false alarms and detections."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.metrics.bootstrap import Interval, bootstrap
from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, frame_times, portrait, portrait_clip

from ....data.vae import Vae
from ....methods.draws import keyed_generator
from ...dataset import HELD_OUT_SEED, to_unit_frames
from ..faces import INTACT, identity_kept, intact_share
from ..held_out import decode, encode
from ..late import last_third
from .batches import gaze_seen
from .broken import BREAKAGES, LATENTS, PAINTED, visibility
from .broken_latents import break_latents
from .calibration import SeenClips
from .examples import paint_clip
from .places import places_of
from .quantities import IDENTITY, MOTION
from .reading import Reader, Readings

_STRENGTHS = (0.3, 0.6, 1.0)


@dataclass(frozen=True)
class Error:
    """The error of one quantity on unseen people.

    Attributes:
        absolute: mean absolute error, in the unit of the renderer.
        explained: R^2, the explained share of the variance; None if the quantity does not vary among these people.
    """

    absolute: Interval
    explained: Interval | None


@dataclass(frozen=True)
class Detection:
    """How often a kind of breakage is detected.

    Attributes:
        rate: detected share of the visibly broken late frames; None with fewer than 2 clips.
        clips: number of clips with such frames.
        frames: number of such frames.
    """

    rate: Interval | None
    clips: int
    frames: int


def _over_clips(values: Tensor) -> Interval:
    return bootstrap(values, torch.Generator().manual_seed(0))


def _error(error: Tensor, truth: Tensor, counted: Tensor) -> Error:
    """Return the error of one quantity; all arguments are `[N, T]`."""
    weight = counted / counted.mean()
    variance = ((truth - (truth * weight).mean()).square() * weight).mean()
    shares = 1 - (error.square() * weight).mean(dim=1) / variance
    # Equal values have a variance of rounding errors only.
    varies = bool(variance > 1e-10 * truth.square().mean().clamp(min=1e-12))
    return Error(_over_clips((error.abs() * weight).mean(dim=1)), _over_clips(shares) if varies else None)


def motion_errors(readings: Readings, seen: SeenClips) -> dict[str, Error]:
    """Return the error of every quantity of the motion. The gaze of closed eyes does not count.

    Args:
        readings: of `seen.clips`.
        seen: the clips with their truth.
    """
    error, counted = readings.motion - seen.motion, gaze_seen(seen.motion)
    return {
        name: _error(error[..., place], seen.motion[..., place], counted[..., place])
        for place, name in enumerate(MOTION)
    }


def identity_errors(attributes: Tensor, seen: SeenClips) -> dict[str, Error]:
    """Return the error of every attribute.

    Args:
        attributes: `[N, T, D]` from `Reader.attributes`.
        seen: the clips with their truth.
    """
    truth = seen.identity[:, None].expand_as(attributes)
    return {
        name: _error((attributes - truth)[..., place], truth[..., place], torch.ones(truth.shape[:2]))
        for place, name in enumerate(IDENTITY)
    }


def face_rates(clips: Readings, others: Readings) -> dict[str, Interval]:
    """Return how often whole faces are called broken, and whether people are recognised.

    Args:
        clips: the readings of one future of each person.
        others: the readings of another future of each person.

    Returns:
        `false alarms`: the share of late frames of whole faces that are called broken. `same person`: the share of late
        frames that are recognised as the person of the other future. `other person`: the same for the next person,
        which should be 0.
    """
    count = len(clips.whole)
    following = torch.arange(1, count + 1) % count
    return {
        "false alarms": _over_clips(1 - intact_share(others)),
        "same person": _over_clips(identity_kept(others, clips)),
        "other person": _over_clips(identity_kept(others, clips.clips(following))),
    }


def detection_rates(
    reader: Reader, vae: Vae, people: int, advance: Callable[[], None] = lambda: None
) -> dict[str, Detection]:
    """Return how many visibly broken late frames are detected, for each kind of breakage.

    Painted breakages are measured twice: painted over what the VAE shows, as sharp as the painting, and painted before
    the VAE, which blurs them like everything else. The latter has one kind per person in turn and is one row.

    Args:
        reader: the reader.
        vae: the VAE, on the GPU if there is one.
        people: number of held-out people.
        advance: called after each person.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for number in range(people):
        for kind, flagged, counted in _broken_clips(reader, vae, number):
            found.setdefault(kind, []).append((flagged, counted))
        advance()
    rates = {}
    for kind, rows in found.items():
        shares = [float(flagged[counted].float().mean()) for flagged, counted in rows if counted.any()]
        frames = sum(int(counted.sum()) for _, counted in rows)
        rate = _over_clips(torch.tensor(shares)) if len(shares) > 1 else None
        rates[kind] = Detection(rate, len(shares), frames)
    return rates


def _broken_clips(reader: Reader, vae: Vae, number: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield for one person (kind, flagged frames, visibly broken frames), for all kinds at one of the strengths."""
    seed = HELD_OUT_SEED + number
    spec = portrait(seed)
    places = places_of(spec, pose_at(spec, frame_times(DEFAULT_FRAMES)), DEFAULT_SIZE)
    clip = to_unit_frames(portrait_clip(seed, DEFAULT_FRAMES, DEFAULT_SIZE))
    late = last_third(DEFAULT_FRAMES)
    latents = encode(vae, clip[None])
    whole = decode(vae, latents)[0]
    strength = _STRENGTHS[number % len(_STRENGTHS)]

    def judged(kind: str, row: str, broken: Tensor) -> tuple[str, Tensor, Tensor]:
        changes = [visibility(before, after) for before, after in zip(whole[late], broken, strict=True)]
        flagged = reader.read(broken[None]).whole[0] < INTACT
        return row, flagged, torch.tensor(changes) >= BREAKAGES[kind].visible_from

    for kind in PAINTED:
        key = ("check", kind, number)
        yield judged(kind, kind, paint_clip(whole[late], places[late], kind, key, strength))
    kind = PAINTED[number // len(_STRENGTHS) % len(PAINTED)]
    painted = encode(vae, paint_clip(clip, places, kind, ("check", kind, number), strength)[None])
    broken = break_latents(latents[0], places, keyed_generator("check", number), strength)[None]
    yield judged(kind, "painted before the VAE", decode(vae, painted)[0, late])
    yield judged(LATENTS, LATENTS, decode(vae, broken)[0, late])

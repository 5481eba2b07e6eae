"""What the reader's numbers mean: the scale of identity distances, and the threshold of "whole"."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import DEFAULT_FRAMES, frame_times, portrait, portrait_clip

from ....data.vae import Vae
from ...dataset import to_unit_frames
from ..held_out import decode, encode
from ..late import last_third
from .network import ReaderNetwork
from .quantities import identity_of, motion_of
from .reading import Reader, identity_distance

# Far from the seeds of all trainings and of the held-out portraits.
CALIBRATION_SEED = 4_000_000

# The share of whole frames, and of pairs of the same person, that pass.
PASSED = 0.99

# A standardised attribute that differs by less within one person does not count for more.
_SMALLEST_SPREAD = 0.05


@dataclass(frozen=True)
class SeenClips:
    """Clips of several people, seen through the VAE: two futures of each person.

    Attributes:
        clips: the first future of each person, `[N, T, 3, H, W]` in [0, 1].
        others: the second future of each person, shaped as `clips`.
        motion: true motion of `clips`, `[N, T, 7]`.
        identity: true attributes, `[N, D]`.
    """

    clips: Tensor
    others: Tensor
    motion: Tensor
    identity: Tensor


def seen_clips(
    vae: Vae, first_seed: int, people: int, advance: Callable[[], None] = lambda: None, frames: int = DEFAULT_FRAMES
) -> SeenClips:
    """Render people and return their clips as the VAE shows them.

    Args:
        vae: the VAE, on the GPU if there is one.
        first_seed: seed of the first person. Each next person uses the next seed.
        people: number of people.
        advance: called after each person.
        frames: frames T per clip, 4n + 1.
    """
    futures: tuple[list[Tensor], list[Tensor]] = ([], [])
    specs = [portrait(first_seed + number) for number in range(people)]
    for number in range(people):
        for future, seen in enumerate(futures):
            clip = to_unit_frames(portrait_clip(first_seed + number, frames, future=future))
            seen.append(decode(vae, encode(vae, clip[None]))[0])
        advance()
    return SeenClips(
        clips=torch.stack(futures[0]),
        others=torch.stack(futures[1]),
        motion=torch.stack([motion_of(pose_at(spec, frame_times(frames))) for spec in specs]),
        identity=torch.stack([identity_of(spec) for spec in specs]),
    )


def calibrate(network: ReaderNetwork, seen: SeenClips) -> None:
    """Set `identity_scale` and `whole_shift` of a trained network.

    An attribute is divided by its deviation within one person, so that attributes that are read reliably count most.
    Then 99 % of the late frames of one future lie within distance 1 of the same person's other future, and 99 % of
    all frames have a probability of "whole" of at least 1/2.

    Args:
        network: changed in place.
        seen: whole faces that no training has seen.
    """
    network.identity_scale.fill_(1.0)
    network.whole_shift.fill_(0.0)
    reader = Reader(network)
    clips, others = (reader.read(frames) for frames in (seen.clips, seen.others))
    late = last_third(seen.clips.shape[1])
    truth = clips.identity.mean(dim=1, keepdim=True)
    spread = (others.identity[:, late] - truth).square().mean(dim=(0, 1)).sqrt().clamp_min(_SMALLEST_SPREAD)
    distances = identity_distance(others.identity[:, late] / spread, truth / spread)
    network.identity_scale.copy_(1 / (spread * distances.quantile(PASSED)))
    logits = torch.cat([readings.whole for readings in (clips, others)]).logit(eps=1e-6)
    network.whole_shift.copy_(-logits.quantile(1 - PASSED))

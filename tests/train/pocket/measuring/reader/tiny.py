"""Small inputs for tests of the reader: people without a VAE, and a network whose outputs vary."""

import torch

from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait, portrait_clip
from train.pocket.dataset import to_unit_frames
from train.pocket.measuring.reader.calibration import SeenClips
from train.pocket.measuring.reader.network import ReaderNetwork, initialise
from train.pocket.measuring.reader.quantities import identity_of, motion_of


def untrained_network(seed: int = 0) -> ReaderNetwork:
    """A network whose outputs depend on the picture; a new one returns the means."""
    network, generator = ReaderNetwork(), torch.Generator().manual_seed(seed)
    initialise(network, generator)
    with torch.no_grad():
        network.head.weight.normal_(0, 0.1, generator=generator)
    return network


def rendered_people(first_seed: int, people: int, frames: int = 9) -> SeenClips:
    """Clips of two futures of each person, as rendered."""
    seeds = range(first_seed, first_seed + people)
    futures = [
        torch.stack([to_unit_frames(portrait_clip(seed, frames, future=future)) for seed in seeds]) for future in (0, 1)
    ]
    specs = [portrait(seed) for seed in seeds]
    return SeenClips(
        clips=futures[0],
        others=futures[1],
        motion=torch.stack([motion_of(pose_at(spec, frame_times(frames))) for spec in specs]),
        identity=torch.stack([identity_of(spec) for spec in specs]),
    )

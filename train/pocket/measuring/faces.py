"""Measures of faces: whether they stay intact, whether the person stays the same, and whether they move as data do."""

from torch import Tensor

from magicdistill_core.metrics.distances import energy_distance

from .late import last_third
from .reader.reading import Readings, identity_distance

INTACT = 0.5


def intact_share(readings: Readings, only_late: bool = True) -> Tensor:
    """Return the share of frames with a whole face, `[B]`, from 0 to 1.

    Whole faces that were seen through the VAE have a share of about .99, see `Readings.whole`.

    Args:
        readings: of B clips.
        only_late: count only the last third of each clip.
    """
    whole = readings.whole >= INTACT
    if only_late:
        whole = whole[:, last_third(whole.shape[1])]
    return whole.float().mean(dim=1)


def identity_kept(readings: Readings, truth: Readings) -> Tensor:
    """Return the share of late frames that show the person of the true clip, `[B]`, from 0 to 1.

    A frame shows that person if its identity is within distance 1 of the mean identity of the true clip. Another future
    of the same person has a share of about .99, see `calibration.calibrate`.

    Args:
        readings: of B clips.
        truth: of the clips from which the start images come, in the same order.

    Raises:
        ValueError: if the numbers of clips differ.
    """
    if len(readings.whole) != len(truth.whole):
        raise ValueError(
            f"Each clip needs the clip that its start image comes from. Found {len(readings.whole)} clips and "
            f"{len(truth.whole)} true ones."
        )
    late = readings.identity[:, last_third(readings.whole.shape[1])]
    same = identity_distance(late, truth.identity.mean(dim=1, keepdim=True)) <= 1
    return same.float().mean(dim=1)


def motion_distance(readings: Readings, data: Readings) -> float:
    """Return the energy distance between the motions of two sets of clips. 0 means the same distribution.

    The motion of a clip is the path of pose, gaze, mouth and eyelids, minus its values in the first frame. Each
    quantity is divided by its deviation in the data, and the distance by the root of the number of values, so that 1 is
    a typical difference. The estimate is unbiased and may be slightly negative.

    Args:
        readings: of at least 2 clips of T frames.
        data: of at least 2 real clips of T frames. They need not be of the same people.

    Raises:
        ValueError: if a set has fewer than 2 clips, or the numbers of frames differ.
    """
    real = _paths(data)
    scale = real.std(dim=(0, 1)).clamp_min(1e-6)
    made, real = ((paths / scale).flatten(1) for paths in (_paths(readings), real))
    return energy_distance(made, real) / real.shape[1] ** 0.5


def _paths(readings: Readings) -> Tensor:
    motion = readings.motion
    return motion[:, 1:] - motion[:, :1]

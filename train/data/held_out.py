"""Samples of a dataset that no training sees: the clips of validation."""

import hashlib

from magicdistill_core.errors import ConfigError

from .dataset_index import DatasetIndex

# By default one of this many samples is held out, up to 64, if there are at least 20 samples.
_ONE_OF, _MOST, _FROM = 10, 64, 20


def held_out_samples(index: DatasetIndex, count: int | None) -> list[int]:
    """Return the numbers of the samples that are kept out of training, in ascending order.

    Windows of one video look alike, so a video is held out with all of its windows or not at all. The videos are chosen
    by a hash of their names. The choice does not depend on the run, and adding videos to a dataset hardly changes it.

    Args:
        index: the dataset's index.
        count: number of samples to hold out. Videos of several windows may make it larger, up to twice as large. None
            holds out 10 % of the samples, and at most 64; none of a dataset with fewer than 20 samples.

    Raises:
        ConfigError: if the dataset has no more than `count` samples, or every video has more than twice `count`
            windows.
    """
    names = list(index.keys())
    usual = min(_MOST, len(names) // _ONE_OF) if len(names) >= _FROM else 0
    wanted = usual if count is None else count
    if wanted >= len(names):
        raise ConfigError(
            f"data.held_out is {wanted}, but the dataset has only {len(names)} samples, and some must remain for the "
            f"training. Choose a smaller number, or 0."
        )
    videos: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        # The key of a window is `video#start`. Ready-made clips have no window.
        videos.setdefault(name.rpartition("#")[0] or name, []).append(number)
    chosen: list[int] = []
    for video in sorted(videos, key=_hash):
        if len(chosen) >= wanted:
            break
        windows = videos[video]
        if len(chosen) + len(windows) <= min(2 * wanted, len(names) - 1):
            chosen += windows
    if count and not chosen:
        raise ConfigError(
            f"data.held_out is {count}, but every video of the dataset has more than {2 * count} windows, and a video "
            f"is held out as a whole. Raise data.held_out, prepare more videos, or set data.held_out=0."
        )
    return sorted(chosen)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

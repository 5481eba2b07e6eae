"""The samples that are kept out of training."""

import pytest

from magicdistill_core.errors import ConfigError
from train.data.dataset_index import DatasetIndex, Shard
from train.data.held_out import held_out_samples


def index(names: list[str]) -> DatasetIndex:
    shards = [Shard(file=str(first), bytes=1, samples=names[first : first + 7]) for first in range(0, len(names), 7)]
    return DatasetIndex(frames=5, height=32, width=32, fps=24, dtype="float32", vae_sha256="0" * 64, shards=shards)


def videos(count: int, windows: int) -> list[str]:
    return [f"video-{video}.mp4#{17 * start}" for video in range(count) for start in range(windows)]


@pytest.mark.parametrize(("samples", "expected"), [(19, 0), (20, 2), (512, 51), (5000, 64)])
def test_ten_percent_and_at_most_64_are_held_out(samples: int, expected: int) -> None:
    assert len(held_out_samples(index([f"clip-{number}" for number in range(samples)]), None)) == expected


def test_all_windows_of_a_video_are_held_out_together() -> None:
    names = videos(30, 10)
    held = {names[number] for number in held_out_samples(index(names), 25)}
    of = {name.partition("#")[0] for name in held}
    assert held == {name for name in names if name.partition("#")[0] in of}
    assert len(held) == 30


def test_the_choice_is_spread_and_stays_when_videos_are_added() -> None:
    names = [f"clip-{number:04d}" for number in range(400)]
    held = held_out_samples(index(names), 40)
    assert held == sorted(set(held))
    assert 100 < sum(held) / len(held) < 300
    more = [*names, *(f"new-{number}" for number in range(40))]
    still = {more[number] for number in held_out_samples(index(more), 44)}
    assert len(still & {names[number] for number in held}) > 30


def test_nothing_is_held_out_on_request_or_from_videos_that_are_too_long() -> None:
    assert held_out_samples(index(videos(30, 1)), 0) == []
    assert held_out_samples(index(videos(1, 100)), None) == []
    # Two videos of 50 windows: one of them would be half of the dataset.
    assert held_out_samples(index(videos(2, 50)), None) == []
    with pytest.raises(ConfigError, match=r"data\.held_out is 10, but every video .* more than 20 windows"):
        held_out_samples(index(videos(2, 50)), 10)


def test_something_remains_for_the_training() -> None:
    with pytest.raises(ConfigError, match=r"data\.held_out is 5, but the dataset has only 5 samples"):
        held_out_samples(index(videos(5, 1)), 5)
    assert len(held_out_samples(index(videos(5, 1)), 4)) == 4

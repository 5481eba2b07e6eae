"""Cuts between shots."""

import numpy as np
import pytest

from .scans import moving, picture

pytest.importorskip("scenedetect")

from train.curation.shots import ShotDetector


def cuts(seeds: list[int]) -> list[int]:
    detector = ShotDetector()
    for number, seed in enumerate(seeds):
        detector.add(moving(seed, number))
    return detector.cuts()


@pytest.mark.parametrize("places", [[], [20], [1], [39], [10, 12, 30], [15, 16]])
def test_every_cut_is_found_also_at_the_ends(places: list[int]) -> None:
    seeds = [sum(place <= number for place in places) for number in range(40)]
    assert cuts(seeds) == places


def test_neither_a_pan_nor_a_slow_change_of_light_is_a_cut() -> None:
    pan, light = ShotDetector(), ShotDetector()
    wide = picture(0, 96, 512)
    for number in range(40):
        pan.add(np.ascontiguousarray(wide[:, 4 * number : 4 * number + 128]))
        light.add((picture(0) * (0.3 + 0.7 * number / 40)).astype(np.uint8))
    assert pan.cuts() == light.cuts() == []


def test_a_video_without_frames_has_no_cuts() -> None:
    assert ShotDetector().cuts() == []

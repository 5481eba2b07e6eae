import pytest
import torch

from magicdistill_core.errors import VideoError
from magicdistill_core.geometry import (
    check_geometry,
    frames_to_unit,
    latent_frames,
    latent_shape,
    nearest_length,
    nearest_side,
    unit_to_frames,
    video_frames,
)


@pytest.mark.parametrize(
    ("geometry", "latent"),
    [((17, 96, 96), (1, 16, 5, 12, 12)), ((1, 16, 32), (1, 16, 1, 2, 4)), ((129, 544, 960), (1, 16, 33, 68, 120))],
)
def test_latent_geometry(geometry: tuple[int, int, int], latent: tuple[int, ...]) -> None:
    assert latent_shape(*geometry) == latent
    assert latent_shape(*geometry, batch=3) == (3, *latent[1:])


@pytest.mark.parametrize(
    ("geometry", "advice"),
    [
        ((16, 96, 96), "Use 13 or 17"),
        ((0, 96, 96), "Use 1 or 5"),
        ((17, 100, 96), r"height of 100 .* 96\.$"),
        ((17, 96, 545), r"width of 545 .* 544\.$"),
        ((17, 8, 96), r"height of 8 .* 16\.$"),
        ((17, 0, 96), r"height of 0 .* 16\.$"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_next_that_do(geometry: tuple[int, int, int], advice: str) -> None:
    with pytest.raises(VideoError, match=advice):
        check_geometry(*geometry)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (17, 5), (129, 33)])
def test_the_first_latent_frame_is_one_frame_and_the_others_are_four(frames: int, latents: int) -> None:
    assert latent_frames(frames) == latents
    assert video_frames(latents) == frames


@pytest.mark.parametrize(
    ("frames", "expected"), [(0.1, 1), (1, 1), (2.9, 1), (3.1, 5), (48, 49), (120, 121), (80.4, 81), (129, 129)]
)
def test_lengths_go_to_the_nearest_4n_plus_1(frames: float, expected: int) -> None:
    assert nearest_length(frames) == expected
    assert abs(expected - frames) <= 2


@pytest.mark.parametrize(("pixels", "expected"), [(0.5, 16), (23, 16), (25, 32), (543.7, 544), (960, 960)])
def test_sides_go_to_the_nearest_multiple_of_16(pixels: float, expected: int) -> None:
    assert nearest_side(pixels) == expected


def test_frames_and_unit_video_are_inverse() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3)[: 2 * 8 * 16 * 3].reshape(2, 8, 16, 3)
    unit = frames_to_unit(frames)
    assert unit.shape == (1, 2, 3, 8, 16)
    assert (float(unit.min()), float(unit.max())) == (0.0, 1.0)
    assert torch.equal(unit_to_frames(unit), frames)
    assert unit_to_frames(torch.tensor([-0.5, 1.5]).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)).unique().tolist() == [
        0,
        255,
    ]

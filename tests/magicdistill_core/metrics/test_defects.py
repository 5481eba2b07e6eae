import torch
from torch import Tensor

from magicdistill_core.metrics.defects import find_defects

FPS = 24.0


def moving(count: int = 96) -> Tensor:
    """Small pictures that change smoothly and never repeat, with a little noise of a codec."""
    generator = torch.Generator().manual_seed(0)
    directions = 60 * torch.randn(3, 48, 48, generator=generator)
    time = torch.arange(count).view(-1, 1) / FPS
    weights = torch.cat([torch.sin(1.1 * time), torch.cos(2.3 * time), torch.sin(5.7 * time + 1)], dim=1)
    noise = 0.05 * torch.randn(count, 48, 48, generator=generator)
    return 128 + torch.einsum("tk,khw->thw", weights, directions) / 4 + noise


def test_a_moving_video_has_no_defect() -> None:
    found = find_defects(moving(), FPS)
    assert (found.frozen, found.frozen_from, found.flashes, found.period) == (0.0, None, [], None)


def test_a_frozen_end_is_found() -> None:
    video = moving()
    video[40:] = video[40] + 0.02 * torch.randn(56, 48, 48, generator=torch.Generator().manual_seed(1))
    found = find_defects(video, FPS)
    assert found.frozen_from == 40
    assert abs(found.frozen - 56 / 96) < 0.02


def test_a_picture_shown_twice_is_not_frozen() -> None:
    assert find_defects(moving(48).repeat_interleave(2, 0), FPS).frozen == 0


def test_flashes_are_found_where_they_are() -> None:
    video = moving()
    video[[20, 50]] += 30
    video[70] -= 40
    assert find_defects(video, FPS).flashes == [20, 50, 70]


def test_a_cut_and_a_fade_are_no_flash() -> None:
    video = moving()
    video[50:] += 40
    video[:20] += torch.linspace(-60, 0, 20).view(-1, 1, 1)
    assert find_defects(video, FPS).flashes == []


def test_the_period_of_a_loop_is_found() -> None:
    once = moving(30)
    assert find_defects(once.repeat(4, 1, 1), FPS).period == 30


def test_a_still_video_is_frozen_and_not_looping() -> None:
    found = find_defects(moving(1).repeat(60, 1, 1), FPS)
    assert (found.frozen, found.period) == (1.0, None)


def test_frames_in_random_order_are_found() -> None:
    video = moving()
    order = torch.randperm(len(video), generator=torch.Generator().manual_seed(3))
    assert find_defects(video, FPS).disorder < 0.3
    assert find_defects(video[order], FPS).disorder > 0.8


def test_the_noise_of_a_still_video_is_no_disorder() -> None:
    noise = 0.2 * torch.randn(60, 48, 48, generator=torch.Generator().manual_seed(0))
    assert find_defects(128 + noise, FPS).disorder == 0


def test_a_single_frame_has_no_defect() -> None:
    assert find_defects(moving(1), FPS).frozen == 0

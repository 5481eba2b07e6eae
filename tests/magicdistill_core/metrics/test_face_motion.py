import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from magicdistill_core.metrics.face_motion import (
    euler_angles,
    find_blinks,
    measure_head,
    measure_mouth,
    rotation_angle,
)

FPS = 25.0


def eyes(*closed: tuple[int, int, float], count: int = 250) -> torch.Tensor:
    """Open eyes with noise, and parts (first, last, opening)."""
    opening = 0.3 + 0.01 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    for first, last, value in closed:
        opening[first : last + 1] = value
    return opening


def test_blinks_are_counted_with_their_completeness() -> None:
    found = find_blinks(eyes((50, 53, 0.02), (120, 124, 0.15)), FPS)
    assert len(found.frames) == 2
    assert 50 <= found.frames[0] <= 53
    assert found.completeness == pytest.approx([0.93, 0.5], abs=0.03)
    assert found.rate == pytest.approx(12)  # 2 in 10 seconds
    assert found.closed == 0


def test_shut_eyes_are_no_blink() -> None:
    found = find_blinks(eyes((50, 99, 0.02)), FPS)
    assert (found.frames, found.closed) == ([], pytest.approx(0.2))


def test_a_single_noisy_frame_is_no_blink() -> None:
    assert find_blinks(eyes((50, 50, 0.02)), FPS).frames == []


def test_frames_without_a_face_are_left_out() -> None:
    opening = eyes((50, 53, 0.02))
    opening[125:] = torch.nan
    assert find_blinks(opening, FPS).rate == pytest.approx(12)  # 1 in 5 seconds
    assert find_blinks(torch.full((10,), torch.nan), FPS).rate is None


@pytest.mark.parametrize(("hertz", "speaks"), [(4.0, True), (0.4, False), (11.0, False)])
def test_the_rhythm_of_a_mouth(hertz: float, speaks: bool) -> None:
    time = torch.arange(250) / FPS
    found = measure_mouth(0.2 + 0.2 * torch.sin(2 * math.pi * hertz * time), FPS)
    assert found.per_second == pytest.approx(hertz, abs=0.2)
    assert found.range == pytest.approx(0.4, abs=0.02)
    assert (found.speech > 0.9) if speaks else (found.speech < 0.1)


def test_a_shut_mouth_has_no_rhythm() -> None:
    found = measure_mouth(torch.full((100,), 0.02), FPS)
    assert (found.per_second, found.speech) == (0, None)
    assert measure_mouth(torch.full((5,), torch.nan), FPS).opening is None


def test_angles_are_those_of_scipy() -> None:
    angles = torch.tensor([[20.0, -10.0, 5.0], [-35.0, 25.0, -15.0]], dtype=torch.float64)
    matrices = torch.tensor(Rotation.from_euler("YXZ", angles.numpy(), degrees=True).as_matrix())
    assert euler_angles(matrices).numpy() == pytest.approx(angles.numpy())


@pytest.mark.parametrize("degrees", [0.01, 3.0, 120.0])
def test_angle_between_two_rotations(degrees: float) -> None:
    start = Rotation.from_euler("YXZ", [10, 20, 30], degrees=True)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64), dim=0).numpy()
    turned = Rotation.from_rotvec(math.radians(degrees) * axis) * start
    a, b = (torch.tensor(rotation.as_matrix())[None] for rotation in (start, turned))
    assert rotation_angle(a, b).item() == pytest.approx(degrees, rel=1e-6)


def test_a_turning_head() -> None:
    yaw = torch.linspace(-20, 20, 101).numpy()[:, None]  # 10 degrees a second
    matrices = torch.tensor(Rotation.from_euler("Y", yaw, degrees=True).as_matrix())
    matrices[40] = torch.nan
    head = measure_head(matrices, FPS)
    assert head.yaw == pytest.approx(36, abs=0.5)
    assert head.pitch == pytest.approx(0, abs=1e-4)
    assert head.speed == pytest.approx(10, rel=0.01)
    assert measure_head(torch.full((3, 3, 3), torch.nan), FPS).yaw is None

"""What the reader reads: the true values of a frame, and how they change in the mirrored picture."""

from dataclasses import replace

import torch

from magicdistill_core.pocket.motion import Wave
from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait, render_portrait
from train.pocket.measuring.reader.quantities import IDENTITY, MIRRORED, MOTION, identity_of, motion_of, spread_of


def test_the_mirrored_picture_has_the_mirrored_motion() -> None:
    """A symmetric person with all one-sided parts mirrored is drawn as the mirrored picture."""
    still = Wave(0, 1, 0, 1, 0)
    spec = portrait(4)
    future = replace(spec.future, shift_x=still, roll=still, yaw=still, gaze_x=still, turn=0.15)
    spec = replace(
        spec, hair_style="bald", beard=0.0, future=future, place=replace(spec.place, near=(0.5,) * 3, far=(0.5,) * 3)
    )
    spec = replace(spec, place=replace(spec.place, discs=(), disc_colors=()))
    start = spec.beginning
    mirrored = replace(
        spec,
        light=(-spec.light[0], *spec.light[1:]),
        center=(-spec.center[0], spec.center[1]),
        beginning=replace(start, roll=-start.roll, yaw=-start.yaw, gaze_x=-start.gaze_x),
        future=replace(future, turn=-future.turn),
    )
    before, after = (render_portrait(each, 13) for each in (spec, mirrored))
    assert (before.flip(2).int() - after.int()).abs().max() <= 1
    motion, flipped = (motion_of(pose_at(each, frame_times(13))) for each in (spec, mirrored))
    signs = torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in MOTION])
    torch.testing.assert_close(flipped, motion * signs)
    assert (motion[:, 0] != 0).all()


def test_the_truth_is_that_of_the_renderer() -> None:
    spec = portrait(11)
    pose = pose_at(spec, frame_times(5))
    motion = motion_of(pose)
    assert motion.shape == (5, len(MOTION))
    assert motion[:, MOTION.index("mouth")].tolist() == pose.mouth.flatten().tolist()
    named = dict(zip(IDENTITY, identity_of(spec).tolist(), strict=True))
    assert abs(named["iris green"] - spec.iris[1]) < 1e-6
    assert abs(named["head_width"] - spec.head_width) < 1e-6
    assert named["glasses"] == float(spec.glasses)
    assert [name for name, value in named.items() if name.startswith("hair style") and value == 1] == [
        f"hair style {spec.hair_style}"
    ]


def test_the_spread_is_that_of_the_people() -> None:
    spread = spread_of(400)
    place = IDENTITY.index("head_width")
    # Uniform from 0.70 to 0.83.
    assert abs(spread.identity_mean[place] - 0.765) < 0.006
    assert abs(spread.identity_std[place] - 0.13 / 12**0.5) < 0.003
    assert (spread.identity_std > 0).all()
    assert (spread.motion_std > 0).all()
    # Turns to both sides are equally frequent.
    assert abs(spread.motion_mean[MOTION.index("yaw")]) < 0.02

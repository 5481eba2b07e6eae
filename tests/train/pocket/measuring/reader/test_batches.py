"""The batches of the reader's training: which labels they have, and which of them count."""

from dataclasses import replace

import pytest
import torch

from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait, portrait_clip
from train.pocket.measuring.reader.batches import BatchSource, gaze_seen
from train.pocket.measuring.reader.broken import BREAKAGES, INVISIBLE, VISIBLE
from train.pocket.measuring.reader.examples import KINDS, WHOLE, Examples
from train.pocket.measuring.reader.quantities import MIRRORED, MOTION, motion_of

PEOPLE = 6
KIND = "missing mouth"


def stored(visible: float) -> Examples:
    """Two frames of each person: as rendered, and the same one as if it had been seen and broken."""
    frames = torch.stack([portrait_clip(seed)[seed] for seed in range(PEOPLE)])
    half = PEOPLE // 2
    kinds = [WHOLE] * PEOPLE + [KINDS.index(KIND)] * PEOPLE
    return Examples(
        frames=torch.cat([frames, frames]),
        seeds=torch.arange(PEOPLE).repeat(2),
        times=torch.arange(PEOPLE).repeat(2),
        seen=torch.tensor([False] * half + [True] * (PEOPLE - half) + [True] * PEOPLE),
        kinds=torch.tensor(kinds),
        visible=torch.tensor([0.0] * PEOPLE + [visible] * PEOPLE),
    )


def test_labels_are_those_of_the_portrait() -> None:
    source = BatchSource(stored(0.5), 0)
    spec = portrait(3)
    truth = motion_of(pose_at(spec, frame_times(17)))[3]
    torch.testing.assert_close(source.motion[3], truth)
    torch.testing.assert_close(source.motion[3 + PEOPLE], truth)


@pytest.mark.parametrize(
    ("visible", "whole", "known"), [(INVISIBLE / 2, 1, 1), ((INVISIBLE + VISIBLE) / 2, 0, 0), (2 * VISIBLE, 0, 1)]
)
def test_a_stored_breakage_counts_as_it_is_visible(visible: float, whole: int, known: int) -> None:
    batch = BatchSource(stored(visible), 0).batch(0, 32)
    fourth = slice(3, None, 4)
    assert batch.whole[fourth].eq(whole).all()
    assert batch.whole_known[fourth].eq(known).all()
    mouth = [name == "mouth" for name in MOTION]
    # What is broken cannot be read; the rest can.
    assert batch.motion_seen[fourth][:, mouth].eq(whole).all()
    assert batch.motion_seen[fourth][:, : MOTION.index("gaze_x")].eq(1).all()
    assert batch.identity_seen[fourth].eq(whole).all()


def test_every_batch_has_whole_and_painted_faces() -> None:
    source = BatchSource(stored(2 * VISIBLE), 0)
    batches = [source.batch(update, 32) for update in range(3)]
    whole = torch.cat([batch.whole.view(-1, 4) for batch in batches])
    assert whole[:, :2].eq(1).all()
    assert whole[:, 3].eq(0).all()
    # Nearly all that is painted can be seen.
    assert whole[:, 2].mean() < 0.4
    known = torch.cat([batch.whole_known.view(-1, 4) for batch in batches])
    assert known[:, :2].eq(1).all()
    for batch in batches:
        assert batch.frames.shape == (32, 3, 96, 96)
        assert 0 <= batch.frames.min() < batch.frames.max() <= 1
    assert {BREAKAGES[kind].spoils for kind in BREAKAGES} == {"", "eyes", "mouth", "face"}


def test_an_update_draws_the_same_batch_again() -> None:
    source = BatchSource(stored(0.5), 0)
    first, again, other = source.batch(7, 8), source.batch(7, 8), source.batch(8, 8)
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(first).items())
    assert not torch.equal(first.frames, other.frames)


def test_mirrored_frames_have_mirrored_labels() -> None:
    """Both forms of a person appear, and only the one-sided quantities differ, by their sign."""
    source = BatchSource(replace(stored(0.5), seeds=torch.zeros(2 * PEOPLE, dtype=torch.int64)), 0)
    batch = source.batch(0, 64)
    truths = {}
    for name, values in zip(MOTION, batch.motion.T, strict=True):
        truths[name] = {round(abs(float(v)), 6) for v in source.motion[:, MOTION.index(name)]}
        assert {round(abs(float(v)), 6) for v in values} <= truths[name]
        signs = {float(v) > 0 for v in values if abs(v) > 1e-6}
        expected = {float(v) > 0 for v in source.motion[:, MOTION.index(name)] if abs(v) > 1e-6}
        assert signs == ({True, False} if name in MIRRORED else expected)


def test_closed_eyes_have_no_gaze() -> None:
    motion = torch.zeros(2, len(MOTION))
    motion[1, MOTION.index("blink")] = 0.9
    seen = gaze_seen(motion)
    assert seen[0].eq(1).all()
    assert [name for name, value in zip(MOTION, seen[1], strict=True) if value == 0] == ["gaze_x", "gaze_y"]

"""Joins: colours end at the portrait's and never jump; the cross-fade goes from one segment to the other."""

import torch

from magicdistill_core.long_video.joining import colours_of, cross_fade, matched

ANCHOR = torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3


def drifting(frames: int = 20) -> torch.Tensor:
    """The anchor, which gets redder and loses contrast from frame to frame."""
    share = torch.linspace(0, 1, frames).view(-1, 1, 1, 1)
    faded = (ANCHOR - ANCHOR.mean()) * (1 - 0.15 * share) + ANCHOR.mean()
    return faded + share * torch.tensor([0.08, -0.02, -0.05])


def test_the_end_has_the_colours_of_the_anchor() -> None:
    wanted, clip = colours_of(ANCHOR), drifting()
    found, before = colours_of(matched(clip, wanted)[-3:]), colours_of(clip[-3:])
    assert (found.mean - wanted.mean).abs().max() < 0.1 * (before.mean - wanted.mean).abs().max()
    assert (found.deviation - wanted.deviation).abs().max() < 0.2 * (before.deviation - wanted.deviation).abs().max()


def test_the_first_frame_stays_and_nothing_jumps() -> None:
    clip = drifting()
    made = matched(clip, colours_of(ANCHOR))
    assert torch.equal(made[0], clip[0])
    means = made.mean(dim=(1, 2))
    assert (means[1:] - means[:-1]).abs().max() < 0.01


def test_a_segment_without_drift_stays_as_it_is() -> None:
    clip = ANCHOR.expand(9, -1, -1, -1)
    torch.testing.assert_close(matched(clip, colours_of(ANCHOR)), clip, atol=1e-6, rtol=0)


def test_another_scene_is_corrected_only_a_little() -> None:
    """A black picture has no contrast to restore: the gain is limited."""
    made = matched(torch.zeros(5, 8, 8, 3), colours_of(ANCHOR))
    assert made.isfinite().all()
    assert made[-1].flatten(0, 1).std(dim=0).max() < 1e-6


def test_the_cross_fade_goes_evenly_from_one_to_the_other() -> None:
    before, after = torch.zeros(3, 2, 2, 3), torch.ones(3, 2, 2, 3)
    assert cross_fade(before, after)[:, 0, 0, 0].tolist() == [0.25, 0.5, 0.75]
    assert cross_fade(before[:1], after[:1]).unique().tolist() == [0.5]

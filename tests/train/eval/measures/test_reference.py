from pathlib import Path

import pytest
import torch

from magicdistill_core.media.video_writing import write_video
from train.eval.folders import Item
from train.eval.frames import FrameReader, VideoFacts
from train.eval.measures.base import NotScoredError
from train.eval.measures.reference import PSNR_SSIM
from train.eval.scores import Scores

CPU = torch.device("cpu")


def grey(levels: list[int], side: int = 64) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3).contiguous()


def compared(folder: Path, ours: list[int], theirs: list[int], fps: float = 24, side: int = 64) -> Scores:
    write_video(folder / "ours.mp4", grey(ours), 24, crf=1)
    write_video(folder / "theirs.mp4", grey(theirs, side), fps, crf=1)
    reader = FrameReader(folder / "ours.mp4")
    measure = PSNR_SSIM.make({}, CPU)(Item("ours.mp4", folder / "ours.mp4", None, folder / "theirs.mp4"), reader.facts)
    for frames in reader.groups():
        measure.add(frames)
    return measure.finish()


def test_a_reference_of_another_rate_and_size_is_compared_at_the_same_times(tmp_path: Path) -> None:
    levels = [40, 60, 80, 100, 120, 140, 160, 180]
    doubled = [level for level in levels for _ in range(2)]
    same = compared(tmp_path, levels, doubled, fps=48, side=96)
    assert min(same.curves["psnr"]) > 38
    assert len(same.curves["psnr"]) == len(levels)


def test_a_shorter_reference_is_named(tmp_path: Path) -> None:
    scores = compared(tmp_path, [100] * 12, [100] * 5)
    assert len(scores.curves["psnr"]) == 5
    assert scores.notes == ["the reference has only 5 of 12 frames"]


def test_a_video_without_a_reference_is_not_scored() -> None:
    facts = VideoFacts(64, 64, 24.0, "h264", None)
    with pytest.raises(NotScoredError, match="no reference"):
        PSNR_SSIM.make({}, CPU)(Item("a", Path("a")), facts)

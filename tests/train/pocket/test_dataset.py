"""Folders of portraits: they can be resumed and extended; other settings are an error."""

from pathlib import Path

import pytest
import torch

from magicdistill_core.pocket.render import portrait_clip
from train.pocket.dataset import PortraitFolder, PortraitFolderError, RenderConfig, render_folder, to_unit_frames

TINY = RenderConfig(clips=5, first_seed=40, frames=5, size=32, shard_clips=2)


def test_clip_i_is_the_portrait_of_its_seed(tmp_path: Path) -> None:
    render_folder(TINY, tmp_path)
    folder = PortraitFolder(tmp_path)
    assert len(folder) == 5
    for number in range(5):
        assert torch.equal(folder.clip(number), portrait_clip(40 + number, 5, 32))


def test_an_interrupted_folder_is_finished_without_rendering_again(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_folder(TINY, tmp_path, interrupt)
    with pytest.raises(PortraitFolderError, match="magicdistill pocket render"):
        PortraitFolder(tmp_path)
    whole = tmp_path / "portraits-00000.safetensors"
    before = whole.stat().st_mtime_ns
    render_folder(TINY, tmp_path)
    assert whole.stat().st_mtime_ns == before
    assert torch.equal(PortraitFolder(tmp_path).clip(4), portrait_clip(44, 5, 32))


def test_a_folder_can_grow_but_not_change(tmp_path: Path) -> None:
    render_folder(TINY, tmp_path)
    render_folder(TINY.model_copy(update={"clips": 7}), tmp_path)
    assert torch.equal(PortraitFolder(tmp_path).clip(6), portrait_clip(46, 5, 32))
    with pytest.raises(PortraitFolderError, match="differ"):
        render_folder(TINY.model_copy(update={"size": 48}), tmp_path)


def test_unit_frames() -> None:
    clip = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    assert to_unit_frames(clip).shape == (1, 3, 1, 1)
    torch.testing.assert_close(to_unit_frames(clip).flatten(), torch.tensor([0, 128 / 255, 1]))

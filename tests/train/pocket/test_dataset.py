"""Folders of portraits: they can be resumed and extended; other settings are an error."""

from pathlib import Path

import pytest
import torch

from magicdistill_core.errors import OutputError
from magicdistill_core.pocket.render import portrait_clip
from train.data.dataset import LatentDataset
from train.folder_lock import FolderInUseError, folder_lock
from train.pocket.dataset import PortraitFolder, PortraitFolderError, RenderConfig, render_folder, to_unit_frames
from train.pocket.latents import frames_needed, write_latents

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


def test_a_lost_index_does_not_mix_portraits(tmp_path: Path) -> None:
    """Without portraits.json the shards are checked by their first clips, not only by their number of clips."""
    render_folder(TINY, tmp_path)
    index, last = tmp_path / "portraits.json", tmp_path / "portraits-00002.safetensors"
    index.unlink()
    before = last.stat().st_mtime_ns
    for changes in ({"first_seed": 41}, {"frames": 6}, {"size": 48}):
        with pytest.raises(PortraitFolderError, match="other portraits"):
            render_folder(TINY.model_copy(update=changes), tmp_path)
    assert last.stat().st_mtime_ns == before
    render_folder(TINY, tmp_path)
    assert last.stat().st_mtime_ns == before
    assert len(PortraitFolder(tmp_path)) == 5


def test_settings_of_an_unfinished_folder_are_known(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_folder(TINY, tmp_path, interrupt)
    with pytest.raises(PortraitFolderError, match="differ"):
        render_folder(TINY.model_copy(update={"first_seed": 0}), tmp_path)


def test_a_folder_that_grows_stays_usable_and_never_shrinks(tmp_path: Path) -> None:
    render_folder(TINY, tmp_path)

    def interrupt(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_folder(TINY.model_copy(update={"clips": 9}), tmp_path, interrupt)
    assert torch.equal(PortraitFolder(tmp_path).clip(4), portrait_clip(44, 5, 32))
    render_folder(TINY.model_copy(update={"clips": 9}), tmp_path)
    render_folder(TINY, tmp_path)
    assert len(PortraitFolder(tmp_path)) == 9


def test_damaged_shards_are_rendered_again_and_strangers_do_no_harm(tmp_path: Path) -> None:
    render_folder(TINY, tmp_path)
    shard = tmp_path / "portraits-00001.safetensors"
    whole = shard.read_bytes()
    remains = tmp_path / ".portraits-00001.safetensors.7.tmp"
    for stranger in (remains, tmp_path / "portraits-00001 (1).safetensors", tmp_path / ".DS_Store"):
        stranger.write_bytes(whole[:50])
    for part in (b"", whole[:-1], b"\xff" * 100):
        shard.write_bytes(part)
        with pytest.raises(PortraitFolderError, match="incomplete"):
            PortraitFolder(tmp_path)
    render_folder(TINY, tmp_path)
    assert shard.read_bytes() == whole
    assert not remains.exists()


def test_a_second_rendering_is_refused_and_so_is_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "another rendering"), pytest.raises(FolderInUseError, match="another rendering"):
        render_folder(TINY, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        render_folder(TINY, tmp_path / "file" / "x")


@pytest.mark.parametrize("stride", [1, 3])
def test_rendered_and_stored_portraits_are_encoded_equally(tmp_path: Path, stride: int) -> None:
    frames = frames_needed(stride)
    assert frames == 16 * stride + 1
    render_folder(RenderConfig(clips=2, first_seed=7, frames=frames), tmp_path / "portraits")
    write_latents(tmp_path / "new", 2, first_seed=7, stride=stride)
    write_latents(tmp_path / "stored", 2, portraits=tmp_path / "portraits", stride=stride)
    new, stored = LatentDataset(tmp_path / "new"), LatentDataset(tmp_path / "stored")
    assert new.fps == stored.fps == 24 / stride
    assert torch.equal(new.latents([0, 1]), stored.latents([0, 1]))


def test_stored_portraits_of_another_length_are_refused(tmp_path: Path) -> None:
    render_folder(RenderConfig(clips=1, frames=17), tmp_path / "portraits")
    with pytest.raises(PortraitFolderError, match="49 frames"):
        write_latents(tmp_path / "out", 1, portraits=tmp_path / "portraits", stride=3)
    assert not (tmp_path / "out").exists()

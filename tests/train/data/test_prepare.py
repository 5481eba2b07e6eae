import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import train.data.dataset_writer
from magicdistill_core.errors import CheckpointError, MagicDistillError, VideoError
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.media.video import read_video, resize_crop
from magicdistill_core.media.video_writing import write_video
from tests.makers import file_size_limit
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.prepare import prepare
from train.data.vae import load_vae


def clip(path: Path, frames: int, fps: float = 12.0) -> None:
    generator = torch.Generator().manual_seed(frames)
    ground = torch.randint(0, 256, (1, 40, 72, 3), generator=generator, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = torch.cat([ground.roll(2 * n, dims=2) for n in range(frames)])
    write_video(path, moving, fps)


def run(videos: Path, out: Path, vae: Path, **options: object) -> dict[str, object]:
    settings = {"frames": 5, "height": 16, "width": 32, "fps": 12.0, "dtype": "float32"} | options
    return vars(prepare(videos, out, vae, **settings))  # type: ignore[arg-type]


def keys(folder: Path) -> list[str]:
    shards = json.loads((folder / "dataset.json").read_text())["shards"]
    return [key for shard in shards for key in shard["samples"]]


def test_windows_are_cut_cropped_and_encoded(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "in" / "a.mp4", 13)
    clip(tmp_path / "in" / "deeper" / "b.MP4", 5)
    (tmp_path / "in" / "notes.txt").write_text("no video")
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert report == {"added": 3, "total": 3, "already_in": 0, "skipped": {}}
    assert keys(tmp_path / "out") == ["a.mp4#0", "a.mp4#5", "deeper/b.MP4#0"]
    data = LatentDataset(tmp_path / "out")
    batch = data.batch([1])
    frames = torch.stack(list(read_video(tmp_path / "in" / "a.mp4").frames))[5:10]
    unit = frames_to_unit(resize_crop(frames, 16, 32))
    vae = load_vae(taehv_file)
    assert torch.allclose(batch.latents, vae.encode(unit), atol=1e-6)
    assert torch.allclose(batch.image_latents, vae.encode_image(unit[:, 0]), atol=1e-6)


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_a_full_disk_ends_the_command(
    limit: int, tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full at a shard, or at the index. No video is reported as skipped for that."""
    for name in ("a", "b"):
        clip(tmp_path / "in" / f"{name}.mp4", 5)
    monkeypatch.setattr(train.data.dataset_writer, "_SHARD_SAMPLES", 1)
    if limit > 1000:
        # A file larger than the limit does not fit on the disk.
        monkeypatch.setattr(DatasetIndex, "model_dump_json", lambda *_, **__: "x" * 200_000)
    with (
        file_size_limit(limit),
        pytest.raises(CheckpointError, match=r"(shard-00000\.safetensors|dataset\.json) .*written .*disk"),
    ):
        run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert "skipped" not in caplog.text


@pytest.mark.parametrize(
    ("options", "starts"),
    [({"stride": 2}, [0, 2, 4, 6, 8]), ({"stride": 7}, [0, 7]), ({"fps": 6.0}, [0]), ({"frames": 13}, [0])],
)
def test_stride_rate_and_length_decide_the_windows(
    tmp_path: Path, taehv_file: Path, options: dict[str, object], starts: list[int]
) -> None:
    clip(tmp_path / "a.mp4", 13)
    run(tmp_path / "a.mp4", tmp_path / "out", taehv_file, **options)
    assert keys(tmp_path / "out") == [f"a.mp4#{start}" for start in starts]


def test_a_stride_longer_than_a_window_takes_the_right_frames(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a.mp4", 13)
    run(tmp_path / "a.mp4", tmp_path / "gaps", taehv_file, stride=7)
    run(tmp_path / "a.mp4", tmp_path / "every", taehv_file, stride=1)
    gaps, every = LatentDataset(tmp_path / "gaps").batch([1]), LatentDataset(tmp_path / "every").batch([7])
    assert torch.allclose(gaps.latents, every.latents, atol=1e-6)


def test_bad_clips_are_reported_and_the_next_run_adds_only_what_is_new(tmp_path: Path, taehv_file: Path) -> None:
    videos = tmp_path / "in"
    clip(videos / "good.mp4", 5)
    clip(videos / "short.mp4", 3)
    (videos / "empty.mp4").touch()
    (videos / "broken.mp4").write_bytes((videos / "good.mp4").read_bytes()[:500])
    report = run(videos, tmp_path / "out", taehv_file)
    skipped = report["skipped"]
    assert isinstance(skipped, dict)
    assert report["added"] == 1
    assert set(skipped) == {"short.mp4", "empty.mp4", "broken.mp4"}
    assert "3 frames" in skipped["short.mp4"]
    assert "empty" in skipped["empty.mp4"]
    first = (tmp_path / "out" / "shard-00000.safetensors").stat().st_mtime_ns
    clip(videos / "short.mp4", 9)  # now long enough
    again = run(videos, tmp_path / "out", taehv_file)
    assert (again["added"], again["total"], again["already_in"]) == (1, 2, 1)
    assert (tmp_path / "out" / "shard-00000.safetensors").stat().st_mtime_ns == first
    assert len(LatentDataset(tmp_path / "out")) == 2


def test_an_input_without_usable_videos_is_an_error(tmp_path: Path, taehv_file: Path) -> None:
    with pytest.raises(VideoError, match=r"/none .*exist"):
        run(tmp_path / "none", tmp_path / "out", taehv_file)
    (tmp_path / "in").mkdir()
    with pytest.raises(VideoError, match=r"/in .*no video.*\.mp4"):
        run(tmp_path / "in", tmp_path / "out", taehv_file)
    (tmp_path / "in" / "a.mp4").touch()
    with pytest.raises(VideoError, match=r" 1 videos.*a\.mp4.*empty"):
        run(tmp_path / "in", tmp_path / "out", taehv_file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 6}, "4n \\+ 1"),
        ({"height": 17}, "multiples of 16"),
        ({"stride": 0}, "stride is 0"),
        ({"fps": 0.0}, "fps is 0.0"),
    ],
)
def test_impossible_geometry_is_refused(
    tmp_path: Path, taehv_file: Path, options: dict[str, object], message: str
) -> None:
    clip(tmp_path / "a.mp4", 5)
    with pytest.raises(MagicDistillError, match=message):
        run(tmp_path / "a.mp4", tmp_path / "out", taehv_file, **options)
    assert not (tmp_path / "out").exists()


def test_another_stride_does_not_continue_a_dataset(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a.mp4", 13)
    run(tmp_path / "a.mp4", tmp_path / "out", taehv_file)
    with pytest.raises(DatasetError, match="stride 5"):
        run(tmp_path / "a.mp4", tmp_path / "out", taehv_file, stride=1)


def test_real_clips_with_a_progress_bar(tmp_path: Path, taehv_file: Path, shared_data: Path) -> None:
    screen = io.StringIO()
    report = prepare(
        shared_data / "clips" / "carphone_pristine.mp4",
        tmp_path,
        taehv_file,
        console=Console(file=screen, force_terminal=True, width=100),
    )
    # 120 frames at 29.97 fps are 96 at 24 fps: 5 windows of 17.
    assert report.added == len(LatentDataset(tmp_path)) == 5
    assert "Preparing" in screen.getvalue()
    assert "carphone" in screen.getvalue()

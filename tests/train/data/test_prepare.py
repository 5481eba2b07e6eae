import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import train.data.dataset_writer
import train.data.prepare as prepare_module
from magicdistill_core.errors import CheckpointError, MagicDistillError, OutputError, VideoError
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.media.video import read_video, resize_crop
from magicdistill_core.media.video_writing import write_video
from tests.makers import file_size_limit
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.prepare import prepare
from train.data.vae import Vae, load_vae
from train.folder_lock import FolderInUseError, folder_lock


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
    assert report == {"added": 3, "total": 3, "already_in": 0, "skipped": {}, "stopped_by": None}
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
        ({"fps": float("inf")}, "fps is inf"),
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


ODD = [
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    MemoryError("Unable to allocate 40 GiB"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation."),
    OSError(5, "Input/output error"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    AssertionError(),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda error: type(error).__name__)
def test_one_odd_clip_does_not_end_the_preparation(
    tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch, odd: Exception
) -> None:
    for number, name in enumerate(("a", "odd", "z")):
        clip(tmp_path / "in" / f"{name}.mp4", 5 + 4 * number)
    cut = prepare_module.windows

    def windows(path: Path, geometry: prepare_module.WindowGeometry) -> Iterator[tuple[int, torch.Tensor]]:
        for number, window in enumerate(cut(path, geometry)):
            if path.stem == "odd" and number == 0:
                raise odd
            yield window

    monkeypatch.setattr(prepare_module, "windows", windows)
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert (report["added"], report["total"]) == (3, 3)
    assert set(report["skipped"]) == {"odd.mp4"}  # type: ignore[call-overload]
    (reason,) = report["skipped"].values()  # type: ignore[attr-defined]
    assert str(tmp_path / "in" / "odd.mp4") in reason
    assert "\n" not in reason
    monkeypatch.undo()
    assert run(tmp_path / "in", tmp_path / "out", taehv_file)["added"] == 1  # tried again


def test_a_gpu_that_fails_ends_the_preparation_and_keeps_what_is_done(
    tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "a.mp4", 13)
    cut = prepare_module.windows

    def windows(path: Path, geometry: prepare_module.WindowGeometry) -> Iterator[tuple[int, torch.Tensor]]:
        yield next(cut(path, geometry))
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA.")

    monkeypatch.setattr(prepare_module, "windows", windows)
    with pytest.raises(MagicDistillError, match="illegal memory access") as raised:
        run(tmp_path / "a.mp4", tmp_path / "out", taehv_file)
    assert "DSA" not in str(raised.value)
    assert keys(tmp_path / "out") == ["a.mp4#0"]


class OverflowingVae:
    """A VAE that gives one bad value for dark first frames."""

    def __init__(self, vae: Vae, value: float) -> None:
        self._vae, self._value = vae, value
        self.architecture = vae.architecture

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        latent = self._vae.encode(frames)
        if frames[0, 0].max() == 0:
            latent[0, 3, -1, 1, 1] = self._value
        return latent

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self._vae.encode_image(images)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", "1 NaN and 0 infinite values of 256.*half precision"),
        (float("-inf"), "float32", "0 NaN and 1 infinite values of 256.*half precision"),
        (7e4, "float16", "0 NaN and 1 infinite values of 256.*rounded to float16"),
    ],
)
def test_windows_that_overflow_are_named_and_left_out(
    value: float, dtype: str, message: str, tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = torch.randint(1, 256, (15, 16, 32, 3), dtype=torch.uint8)
    moving[5] = 0
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", moving, 12.0)
    clip(tmp_path / "in" / "b.mp4", 5)
    monkeypatch.setattr(prepare_module, "load_vae", lambda *given: OverflowingVae(load_vae(*given), value))
    report = run(tmp_path / "in", tmp_path / "out", taehv_file, dtype=dtype)
    assert keys(tmp_path / "out") == ["a.mp4#0", "a.mp4#10", "b.mp4#0"]
    skipped = report["skipped"]
    assert isinstance(skipped, dict)
    assert list(skipped) == ["a.mp4"]
    assert re.search(message, skipped["a.mp4"])
    assert "a.mp4#5" in skipped["a.mp4"]
    assert LatentDataset(tmp_path / "out").latents([0, 1, 2]).isfinite().all()


def test_a_vae_that_always_overflows_is_an_error(tmp_path: Path, taehv_file: Path) -> None:
    state = load_file(taehv_file)
    last = [name for name in state if name.startswith("encoder") and name.endswith("bias")][-1]
    state[last][0] = float("nan")
    save_file(state, tmp_path / "vae.safetensors")
    clip(tmp_path / "in" / "a.mp4", 13)
    clip(tmp_path / "in" / "b.mp4", 5)
    with pytest.raises(VideoError, match=r"None of the 2 videos.*2 videos \(a\.mp4, b\.mp4\).*NaN"):
        run(tmp_path / "in", tmp_path / "out", tmp_path / "vae.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_encoded(
    number: signal.Signals, tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frames in (13, 17):
        clip(tmp_path / "in" / f"{frames}.mp4", frames)
    cut = prepare_module.windows

    def windows(path: Path, geometry: prepare_module.WindowGeometry) -> Iterator[tuple[int, torch.Tensor]]:
        for start, window in cut(path, geometry):
            yield start, window
            if start == 0:
                signal.raise_signal(number)

    monkeypatch.setattr(prepare_module, "windows", windows)
    before = signal.getsignal(number)
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert report["stopped_by"] == number.name
    assert signal.getsignal(number) is before
    assert keys(tmp_path / "out") == ["13.mp4#0"]
    monkeypatch.undo()
    report = run(tmp_path / "in", tmp_path / "out", taehv_file)
    assert report["stopped_by"] is None
    assert keys(tmp_path / "out") == ["13.mp4#0", "13.mp4#5", "17.mp4#0", "17.mp4#5", "17.mp4#10"]


def test_a_second_preparation_of_a_folder_is_refused(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a.mp4", 5)
    with (
        folder_lock(tmp_path / "out", "another preparation"),
        pytest.raises(FolderInUseError, match="another preparation"),
    ):
        run(tmp_path / "a.mp4", tmp_path / "out", taehv_file)
    run(tmp_path / "a.mp4", tmp_path / "out", taehv_file)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dataset.json", "shard-00000.safetensors"}


def test_an_output_that_cannot_be_written_is_refused_before_the_vae_is_loaded(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 5)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        run(tmp_path / "a.mp4", tmp_path / "file" / "d", tmp_path / "no_vae")


def test_remains_of_a_killed_preparation_and_files_of_others_do_no_harm(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a.mp4", 5)
    clip(tmp_path / "b.mp4", 9)
    out = tmp_path / "out"
    run(tmp_path / "a.mp4", out, taehv_file)
    shard = (out / "shard-00000.safetensors").read_bytes()
    remains = out / ".shard-00001.safetensors.77.tmp"
    remains.write_bytes(shard[:100])
    for stranger in ("shard-00001 (1).safetensors", "shard-00001.safetensors", ".DS_Store", "Thumbs.db", "notes.txt"):
        (out / stranger).write_bytes(shard[:100])
    run(tmp_path / "b.mp4", out, taehv_file)
    assert not remains.exists()
    assert (out / "notes.txt").exists()
    assert len(LatentDataset(out)) == 2


def test_a_dataset_whose_copy_is_incomplete_is_not_continued(tmp_path: Path, taehv_file: Path) -> None:
    clip(tmp_path / "a.mp4", 5)
    out = tmp_path / "out"
    run(tmp_path / "a.mp4", out, taehv_file)
    shard = out / "shard-00000.safetensors"
    whole = shard.read_bytes()
    for part, message in ((whole[:-1], "truncated, or its copy has not finished"), (whole + b"x", "another file")):
        shard.write_bytes(part)
        with pytest.raises(DatasetError, match=message):
            run(tmp_path / "a.mp4", out, taehv_file)
    shard.unlink()
    with pytest.raises(DatasetError, match="missing"):
        run(tmp_path / "a.mp4", out, taehv_file)

"""Measure the latent dataset: encoding and storing clips, reading batches, and the complete preparation."""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.taehv import TAEHV
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter

from ..harness import GB, Bench
from ..models import fill_randomly

_FPS = 24.0
_SOURCES = 3


def run(bench: Bench) -> None:
    """Measure encoding, storing and reading; then the preparation from video files if PyAV is installed."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        with torch.inference_mode():
            with bench.case("store and read"):
                _store_and_read(bench, folder)
            if find_spec("av") is None:
                bench.record("prepare", error="not run: PyAV is not installed")
            else:
                with bench.case("prepare"):
                    _prepare(bench, folder)
    finally:
        shutil.rmtree(folder)


def _store_and_read(bench: Bench, folder: Path) -> None:
    """Encode one window several times, store the latents as a dataset, and read batches of it."""
    clip = bench.sizes.medium
    vae = TAEHV().to(bench.device).eval()
    fill_randomly(vae, bench.generator())
    window = torch.randint(0, 256, (clip.frames, clip.height, clip.width, 3), dtype=torch.uint8)
    samples = 3 if bench.full else 1
    target = folder / "stored"
    index = DatasetIndex(
        frames=clip.frames, height=clip.height, width=clip.width, fps=_FPS, dtype="float16", vae_sha256="0" * 64
    )
    encoded: list[tuple[Tensor, StartImage]] = []

    def encode() -> None:
        encoded.clear()
        for _ in range(samples):
            unit = frames_to_unit(window).to(bench.device)
            encoded.append((vae.encode(unit)[0], StartImage(vae.encode_image(unit[:, 0]))))

    def store() -> None:
        shutil.rmtree(target, ignore_errors=True)
        with LatentWriter(target, index) as writer:
            for number, (latent, image) in enumerate(encoded):
                writer.append(str(number), latent, image)

    def read() -> None:
        dataset = LatentDataset(target)
        for number in range(samples):
            dataset.batch([number])

    timings = bench.compare({"encode": encode, "store": store, "read": read}, repeats=3)
    stored = sum(file.stat().st_size for file in target.glob("*.safetensors")) / GB
    for name, timing in timings.items():
        columns = {"samples_per_s": samples / timing.median, "frames_per_s": samples * clip.frames / timing.median}
        if name != "encode":
            columns["gb_per_s"] = stored / timing.median
        bench.record(f"{name}, {clip.name}", **timing.row(), **columns)


def _prepare(bench: Bench, folder: Path) -> None:
    """Measure `magicdistill prepare` on synthetic videos, and only its decoding, cutting and resizing."""
    # Imported here because both need PyAV.
    from magicdistill_core.media.video_writing import write_video
    from train.data.prepare import prepare
    from train.data.windows import WindowGeometry, windows

    clip = bench.sizes.medium
    videos = folder / "videos"
    videos.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(_SOURCES):
        # Larger than the windows, so `prepare` must resize it; and smooth like natural images.
        coarse = torch.rand(2 * clip.frames, 3, 8, 8, generator=generator)
        frames = torch.nn.functional.interpolate(coarse, (2 * clip.height, 2 * clip.width), mode="bilinear")
        write_video(videos / f"{number}.mp4", (frames * 255).byte().permute(0, 2, 3, 1).contiguous(), _FPS, {})
    vae = folder / "vae.safetensors"
    model = TAEHV()
    fill_randomly(model, generator)
    save_file(model.state_dict(), vae)
    geometry = WindowGeometry(clip.frames, clip.height, clip.width, _FPS, clip.frames)
    total = 2 * clip.frames * _SOURCES

    def decode() -> None:
        for video in videos.iterdir():
            for _ in windows(video, geometry):
                pass

    def prepare_all() -> None:
        shutil.rmtree(folder / "prepared", ignore_errors=True)
        out = folder / "prepared"
        prepare(videos, out, vae, clip.frames, clip.height, clip.width, _FPS, device=bench.device)

    for name, timing in bench.compare({"decode and cut": decode, "prepare": prepare_all}, repeats=3).items():
        bench.record(f"{name}, {clip.name}", **timing.row(), frames_per_s=total / timing.median)

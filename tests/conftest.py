"""Fixtures that every test may use."""

import os
import signal

# Several test processes share the machine. With more threads than cores they would wait for each other. PyTorch reads
# the variable when it is first imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicdistill_core.taehv import TAEHV
from train.comfyui.server import ComfyUIError, find_comfyui

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def skip_or_fail() -> Callable[[str, str], NoReturn]:
    """Skips a test whose tool is missing, or fails it if the tool is required: `skip_or_fail(what, why)`.

    The environment variable MAGICDISTILL_REQUIRE names the required tools, such as `comfyui,chromium`. `.ci/run` sets
    it, because there a skipped test would be an unnoticed failure.
    """

    def decide(what: str, why: str) -> NoReturn:
        if what in os.environ.get("MAGICDISTILL_REQUIRE", "").split(","):
            pytest.fail(f"MAGICDISTILL_REQUIRE asks for {what}, but {why}", pytrace=False)
        pytest.skip(why)

    return decide


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, stills and weights next to the repository; tests skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real test inputs are not there ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def taehv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE file in the TAEHV layout with random weights, whose decoded pictures have contrast."""
    path = tmp_path_factory.mktemp("taehv") / "vae.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in TAEHV().state_dict().items():
        spread = value[0].numel() ** -0.5 if value.ndim == 4 else 0.0
        state[key] = spread * torch.randn(value.shape, generator=generator)
    state["decoder.22.bias"] += 0.5
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def write_late_clip() -> Callable[[Path, float, float], None]:
    """Writes a clip that does not begin at 0: `write(path, picture, sound)`, the times at which its streams begin.

    For one second from the picture's beginning it is black and silent, for another second white with a loud tone.
    """
    fps, rate, step = 25, 48000, 480

    def write(path: Path, picture: float, sound: float) -> None:
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=fps, options={"crf": "0"})
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            audio = container.add_stream("aac", rate=rate, layout="mono")
            for number in range(2 * fps):
                image = np.full((48, 64, 3), 255 * (number >= fps), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number + round(picture * fps), Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            for first in range(round(sound * rate), round((picture + 2) * rate), step):
                time = np.arange(first, first + step) / rate
                wave = 0.5 * np.sin(2 * np.pi * 1000 * time) * (time >= picture + 1)
                chunk = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = rate, first, Fraction(1, rate)
                container.mux(audio.encode(chunk))
            container.mux(audio.encode(None))

    return write


@pytest.fixture(scope="session")
def comfyui_dir(skip_or_fail: Callable[[str, str], NoReturn]) -> Path:
    """A real ComfyUI: COMFYUI_DIR, or a copy fetched once into the cache."""
    try:
        return find_comfyui()
    except ComfyUIError as error:
        skip_or_fail("comfyui", f"there is no ComfyUI to test against: {error}")


@pytest.fixture(scope="session")
def stock_process(comfyui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """One process that has ComfyUI, and not the trainer, on its path; see `comfyui/stock_side/`."""
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, str(Path(__file__).parent / "comfyui" / "stock_side"), str(comfyui_dir)]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder
        ) as process,
    ):
        yield process
        process.kill()


@pytest.fixture(scope="session")
def stock_side(
    stock_process: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[dict]], list[dict[str, Tensor]]]:
    """Runs jobs in `stock_process`."""

    def run(jobs: list[dict]) -> list[dict[str, Tensor]]:
        folder = tmp_path_factory.mktemp("jobs")
        files = [folder / f"{number}.safetensors" for number in range(len(jobs))]
        jobs = [job | {"out": str(file)} for job, file in zip(jobs, files, strict=True)]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        assert stock_process.stdin is not None
        assert stock_process.stdout is not None
        print(folder / "jobs.json", file=stock_process.stdin, flush=True)
        answer = stock_process.stdout.readline()
        assert answer.startswith("stock side:"), "the process with ComfyUI has ended"
        problem = json.loads(answer.removeprefix("stock side:"))
        assert not problem, problem[-4000:]
        return [load_file(file) for file in files]

    return run

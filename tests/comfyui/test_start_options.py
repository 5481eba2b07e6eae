"""ComfyUI's start options: a portrait becomes the same video under each of them.

Some options mean something only on a GPU, and are tested only there. Next to `--cpu`, ComfyUI 0.30 refuses `--lowvram`,
`--novram` and `--highvram`, and `--enable-dynamic-vram` ends it with a TypeError. `--fast` runs on a CPU too, but there
it changes nothing: it is about fp8 and about choosing convolutions on a GPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from magicdistill_core.media.video import read_tags
from magicdistill_core.pocket import files
from train.comfyui.server import prepare_directory, serve

from .prompts import CHAIN, PORTRAIT, SAMPLED, Prompt, changed

pytestmark = pytest.mark.slow

# Options that do not exclude each other share one start.
CPU = (
    *("--fast", "--cpu-vae", "--multi-user", "--disable-metadata", "--cache-none", "--disable-dynamic-vram"),
    *("--fast-disk", "--disable-mmap", "--disable-smart-memory", "--force-non-blocking", "--disable-pinned-memory"),
)
GPU = {
    "dynamic VRAM": ("--enable-dynamic-vram", "--fast-disk"),
    "lowvram": ("--lowvram", "--disable-dynamic-vram"),
    "novram": ("--novram",),
    "highvram": ("--highvram",),
}
LONG: Prompt = {name: node for name, node in SAMPLED.items() if name != "sample"} | {
    "long": {
        "class_type": "MagicDistillLongVideo",
        "inputs": {"model": ["load", 0], "vae": ["vae", 0], "conditioning": ["video", 0], "latent": ["video", 1]}
        | {"seconds": 3.0, "seed": 3, "steps": 0, "shift": 0.0, "sampler": "recipe", "filename_prefix": "long/tiny"},
    }
}


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest,
    comfyui_dir: Path,
    client: Callable[[str, Path, Path], Any],
    tiny_models: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Run one ComfyUI with the options of the test's parameter."""
    directory = tmp_path_factory.mktemp("options")
    prepare_directory(directory)
    tiny_models(directory / "models")
    log = directory / "server.log"
    with log.open("wb") as output, serve(comfyui_dir, directory, log=output, options=request.param) as running:
        yield client(running.address, directory, log)


def saved(server: Any, prompt: Prompt, node: str = "save") -> Path:
    """Run a prompt and return the file that a node has saved."""
    (entry,) = server.run(prompt)[node]["images"]
    return server.directory / "output" / entry["subfolder"] / entry["filename"]


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def check_same_videos(started: Any, server: Any, tolerance: float) -> None:
    """Compare the videos of two servers, with and without LoRAs; the tolerance is in levels from 0 to 255."""
    assert "IMPORT FAILED" not in started.log.read_text(errors="replace")
    for tiny in (CHAIN, PORTRAIT):
        # The pocket model's VAE, because the tiny one makes dark pictures.
        prompt = changed(tiny, vae={"vae_name": files.VAE.name})
        found, expected = frames(saved(started, prompt)), frames(saved(server, prompt))
        assert found.shape == expected.shape == (17, 48, 64, 3)
        assert expected.std() > 5
        assert np.abs(found.astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("started", [CPU], ids=["all"], indirect=True)
def test_the_video_is_the_same_and_holds_no_metadata(started: Any, server: Any) -> None:
    check_same_videos(started, server, 0)
    for prompt, node in ((PORTRAIT, "save"), (LONG, "long")):
        file = saved(started, prompt, node)
        assert not any("magicdistill" in name or name in ("prompt", "workflow") for name in read_tags(file))
        held = file.read_bytes()
        assert all(text not in held for text in (b"MagicDistill", b"tiny.safetensors", b"class_type"))
        assert {"prompt", "magicdistill"} <= set(read_tags(saved(server, prompt, node)))
    # A second user of this server queues a prompt, too.
    user = started.post("/users", {"username": "second"})
    assert user in started.get("/users")["users"]
    assert len(frames(saved(started, changed(CHAIN, sample={"seed": 9})))) == 17


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="ComfyUI takes these options only on a GPU")
@pytest.mark.parametrize("started", GPU.values(), ids=GPU, indirect=True)
def test_the_video_is_the_same_with_another_share_of_gpu_memory(started: Any, server: Any) -> None:
    check_same_videos(started, server, 8)

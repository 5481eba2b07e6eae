"""The oldest supported ComfyUI: it lists the nodes, and a portrait becomes a video."""

import json
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import av
import pytest

from train.comfyui.server import OLDEST_VERSION, ComfyUIError, find_comfyui, prepare_directory, serve

from .prompts import PORTRAIT

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
SCHEMAS = Path(__file__).with_name("schemas.json")


@pytest.fixture(scope="module")
def oldest(
    skip_or_fail: Callable[[str, str], NoReturn],
    client: Callable[[str, Path, Path], Any],
    tiny_models: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Run the oldest supported ComfyUI, from COMFYUI_OLDEST_DIR or from a copy in the cache."""
    try:
        comfyui = find_comfyui(version=OLDEST_VERSION, variable="COMFYUI_OLDEST_DIR")
    except ComfyUIError as error:
        skip_or_fail("comfyui", f"there is no ComfyUI {OLDEST_VERSION} to test against: {error}")
    directory = tmp_path_factory.mktemp("oldest")
    prepare_directory(directory)
    tiny_models(directory / "models")
    log = directory / "server.log"
    with log.open("wb") as output, serve(comfyui, directory, log=output) as running:
        yield client(running.address, directory, log)


def test_claim_is_the_version_that_is_tested(oldest: Any) -> None:
    claim = tomllib.loads(PROJECT.read_text())["tool"]["comfy"]["requires-comfyui"]
    assert claim == f">={OLDEST_VERSION}"
    assert oldest.get("/system_stats")["system"]["comfyui_version"] == OLDEST_VERSION


def test_every_node_is_there(oldest: Any) -> None:
    assert "IMPORT FAILED" not in oldest.log.read_text(errors="replace")
    assert set(json.loads(SCHEMAS.read_text())) <= set(oldest.get("/object_info"))


def saved(oldest: Any, prompt: dict[str, Any]) -> tuple[int, set[str]]:
    """Run a prompt; return the frames and the tags of the saved file."""
    (entry,) = oldest.run(prompt)["save"]["images"]
    with av.open(str(oldest.directory / "output" / entry["subfolder"] / entry["filename"])) as video:
        return sum(1 for _ in video.decode(video=0)), set(video.metadata)


def test_portrait_becomes_a_video(oldest: Any) -> None:
    frames, tags = saved(oldest, PORTRAIT)
    assert frames == 17
    assert {"prompt", "magicdistill"} <= tags


def test_int8_copy_is_written_and_runs(oldest: Any) -> None:
    oldest.run({"quantise": {"class_type": "MagicDistillQuantise", "inputs": {"unet_name": "tiny.safetensors"}}})
    prompt = deepcopy(PORTRAIT)
    prompt["load"]["inputs"]["unet_name"] = "tiny_int8.safetensors"
    frames, _ = saved(oldest, prompt)
    assert frames == 17

"""Write the workflows, thumbnails and blueprints of the pack, for the command `magicdistill workflows`."""

import json
import logging
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicdistill_core.pocket.files import CAPTIONED_4STEP_LORA, ONE_STEP_LORA

from ..server import PACK, ComfyUIError, find_comfyui, serve
from . import finish, large, long, pocket
from .blueprints import BLUEPRINTS, blueprint_json
from .graph import Graph
from .prompt import to_prompt
from .schemas import Schema, parse_schemas
from .thumbnails import card, save_thumbnail, sweep_thumbnail, video_thumbnail

LOGGER = logging.getLogger(__name__)
FOLDER = PACK / "workflows"
# The folder name is ComfyUI's.
BLUEPRINT_FOLDER = PACK / "subgraphs"
_RUN_SECONDS = 1800.0


@dataclass(frozen=True)
class Definition:
    """Definition of a workflow.

    Attributes:
        define: function that adds the nodes to an empty graph.
        card: title and lines of a drawn thumbnail; None if the thumbnail shows the workflow's output.
        weights: a shipped model file that the workflow needs and that may not have been trained yet. The pack has the
            workflow as soon as it has the file.
    """

    define: Callable[[Graph], None]
    card: tuple[str, list[str]] | None = None
    weights: Path | None = None


_I2V = "portrait to video"
DEFINITIONS: dict[str, Definition] = {
    one.define.__name__: one
    for one in (
        Definition(pocket.portrait_pocket),
        Definition(pocket.portrait_pocket_one_step, weights=ONE_STEP_LORA),
        Definition(pocket.portrait_pocket_ti2v, weights=CAPTIONED_4STEP_LORA),
        Definition(pocket.portrait_in_one_node),
        Definition(pocket.real_fake_sweep_pocket),
        Definition(long.long_portrait_pocket, ("Pocket model", ["a long video", "segments of 4 steps each"])),
        Definition(long.long_portrait_hunyuan_i2v, ("HunyuanVideo-I2V", ["long portrait video", "4 steps a segment"])),
        Definition(large.hunyuan_i2v_w2s_4step, ("HunyuanVideo-I2V", [_I2V, "4 steps, one checkpoint"])),
        Definition(large.hunyuan_i2v_w2s_4step_lora, ("HunyuanVideo-I2V", [_I2V, "4 steps, LoRA on the base"])),
        Definition(large.hunyuan_i2v_one_step, ("HunyuanVideo-I2V", [_I2V, "1 step"])),
        Definition(large.magic141_text_image_to_video, ("Magic 1-For-1", ["text + portrait to video", "4 steps"])),
        Definition(large.wan21_i2v_4step_lora, ("Wan 2.1 I2V", [_I2V, "4 steps, public LoRA"])),
        Definition(
            large.similar_picture_to_video, ("Similar picture", ["found in a folder by a text", "then a video"])
        ),
        Definition(large.text_to_image_to_video, ("Text to video", ["a picture from text", "then a video in 4 steps"])),
        Definition(
            finish.portrait_pocket_finished, ("Pocket model", ["finished by stock nodes:", "48 fps, 384 x 384"])
        ),
    )
    if one.weights is None or one.weights.is_file()
}


def workflow_json(name: str, schemas: Mapping[str, Schema]) -> str:
    """Return the JSON text of a workflow's file.

    Args:
        name: name of the workflow, a key of `DEFINITIONS`.
        schemas: schemas of a running ComfyUI by node type, from `parse_schemas`.

    Raises:
        ConfigError: if a definition does not fit the schemas.
    """
    graph = Graph(name, schemas)
    DEFINITIONS[name].define(graph)
    return json.dumps(graph.to_json(), indent=1, ensure_ascii=False) + "\n"


def write_workflows(
    comfyui: Path | None, thumbnails: bool, folder: Path = FOLDER, blueprints: Path = BLUEPRINT_FOLDER
) -> list[Path]:
    """Start ComfyUI, and write every workflow and blueprint with its schemas.

    Args:
        comfyui: ComfyUI's folder; None as for `find_comfyui`.
        thumbnails: whether to write the thumbnails too; this runs the pocket workflows.
        folder: folder for the workflows and thumbnails.
        blueprints: folder for the blueprints.

    Returns:
        Paths of the written files.

    Raises:
        ComfyUIError: if ComfyUI cannot be started, or fails to run a workflow.
        ConfigError: if a definition does not fit the nodes.
    """
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with (directory / "server.log").open("wb") as log, serve(find_comfyui(comfyui), directory, log=log) as server:
            schemas = parse_schemas(_get(f"{server.address}/object_info"))
            for name in DEFINITIONS:
                path = folder / f"{name}.json"
                path.write_text(workflow_json(name, schemas), encoding="utf-8")
                written.append(path)
            for name in BLUEPRINTS:
                path = blueprints / f"{name}.json"
                path.write_text(blueprint_json(name, schemas), encoding="utf-8")
                written.append(path)
            for name in DEFINITIONS if thumbnails else ():
                path = folder / f"{name}.jpg"
                LOGGER.info("%s ...", path.name)
                _thumbnail(name, folder, schemas, server.address, directory / "output", path)
                written.append(path)
    return written


def _thumbnail(name: str, folder: Path, schemas: Mapping[str, Schema], address: str, output: Path, path: Path) -> None:
    drawn = DEFINITIONS[name].card
    if drawn is not None:
        title, lines = drawn
        save_thumbnail(card(title, lines, list(DEFINITIONS).index(name)), path)
        return
    workflow = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    results = _run(address, to_prompt(workflow, schemas))
    files = [
        output / file["subfolder"] / file["filename"]
        for result in results.values()
        for file in result.get("images", [])
    ]
    pictures = [file for file in files if file.suffix == ".png"]
    save_thumbnail(sweep_thumbnail(pictures[0]) if pictures else video_thumbnail(files[0]), path)


def _run(address: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """Run a prompt, and return its outputs by node id."""
    # Previews at every step would take most of the time, and nobody sees them here.
    body = json.dumps({"prompt": prompt, "extra_data": {"preview_method": "none"}}).encode()
    prompt_id = _get(urllib.request.Request(f"{address}/prompt", body, {"Content-Type": "application/json"}))[
        "prompt_id"
    ]
    end = time.monotonic() + _RUN_SECONDS
    while time.monotonic() < end:
        entry = _get(f"{address}/history/{prompt_id}").get(prompt_id)
        if entry is not None:
            if entry["status"]["status_str"] != "success":
                raise ComfyUIError(
                    f"ComfyUI failed to run the workflow: {entry['status']['messages'][-1]}. Correct its definition."
                )
            return dict(entry["outputs"])
        time.sleep(0.5)
    raise ComfyUIError(f"ComfyUI did not finish a workflow within {_RUN_SECONDS:.0f} s. Try again on an idle machine.")


def _get(what: str | urllib.request.Request) -> Any:
    with urllib.request.urlopen(what, timeout=60) as answer:
        return json.load(answer)

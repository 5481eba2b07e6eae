"""Diffusers folders: find their weight files, and read from their configuration how the start image enters."""

import json
from pathlib import Path

from .errors import CheckpointError
from .families import all_families
from .layouts.modules import listing

WEIGHTS = "diffusion_pytorch_model.safetensors"
# This file next to the weights holds recipe, null prompt and captions, because diffusers has no place for them.
COMPANION = "magicdistill.safetensors"


def weight_files(path: Path) -> list[Path]:
    """List the weight files of a file or a diffusers folder.

    If a folder has several variants (such as fp16), the one without a variant name is used. If there is an index, it
    decides which files belong together.

    Args:
        path: a file, a transformer folder, or a pipeline folder with a subfolder `transformer`.

    Returns:
        `[path]` for a file, also if it does not exist. For a folder its safetensors files, including the one with the
        recipe and the null prompt (`COMPANION`) if there is one.

    Raises:
        CheckpointError: if a folder holds no weights, its index is damaged, or a file of the index is missing.
    """
    if not path.is_dir():
        return [path]
    path = _transformer_folder(path)
    index = path / f"{WEIGHTS}.index.json"
    companion = [path / COMPANION] if (path / COMPANION).is_file() else []
    if index.is_file():
        try:
            files = sorted({path / str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{index} is damaged: it holds no table of weight files in JSON. Download the folder again."
            ) from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"In {path}, {len(missing)} of the {len(files)} files that the index names are missing: "
                f"{listing(missing, 3)}. Download the folder again."
            )
        return files + companion
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS, *companion]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"The folder {path} holds no .safetensors file. Expected a model file or a diffusers transformer folder. "
            f"Export a training run first: `magicdistill export RUN --out FILE.safetensors`."
        )
    return files


def _transformer_folder(path: Path) -> Path:
    inner = path / "transformer"
    return inner if (inner / "config.json").is_file() else path


def folder_i2v_mode(path: Path) -> str | None:
    """Read from a diffusers folder's config.json how the start image enters the network.

    Args:
        path: a transformer folder or a pipeline folder; a file is allowed too.

    Returns:
        The `i2v_mode` of a family, such as `concat`. None for a file, or if the configuration states no known mode.

    Raises:
        CheckpointError: if the config.json cannot be read.
    """
    config = _transformer_folder(path) / "config.json"
    if not path.is_dir() or not config.is_file():
        return None
    try:
        mode = json.loads(config.read_text(encoding="utf-8")).get("image_condition_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{config} is damaged: it holds no settings in JSON. Download the folder again."
        ) from error
    return next((f.i2v_mode for f in all_families() if mode is not None and f.diffusers_mode == mode), None)

"""Diffusers' folders of weights: which files belong together, and what the configuration says."""

import json
from pathlib import Path

from .errors import CheckpointError
from .families import all_families
from .layouts.modules import listing

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Beside the weights: the recipe and the null prompt, which diffusers has no place for.
COMPANION = "magicdistill.safetensors"


def weight_files(path: Path) -> list[Path]:
    """A weights file itself, or the safetensors files of a diffusers transformer folder (or of one that holds it).

    Of several variants in one folder the plain one is taken; shards are those that the index names.

    Raises:
        CheckpointError: if there is nothing, a folder holds no weights, or a shard is missing.
    """
    if not path.is_dir():
        return [path]
    path = _transformer_folder(path)
    index = path / f"{WEIGHTS}.index.json"
    companion = [path / COMPANION] if (path / COMPANION).is_file() else []
    if index.is_file():
        try:
            files = sorted({path / str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is damaged ({error!r}). Download the folder again.") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{path} lacks {len(missing)} of the {len(files)} files that its index names: {listing(missing, 3)}. "
                f"Download the folder again."
            )
        return files + companion
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS, *companion]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"The folder {path} holds no .safetensors file. Expected a weights file or a diffusers transformer folder; "
            f"what a training run made is exported first (`magicdistill export RUN --out FILE.safetensors`)."
        )
    return files


def _transformer_folder(path: Path) -> Path:
    inner = path / "transformer"
    return inner if (inner / "config.json").is_file() else path


def folder_i2v_mode(path: Path) -> str | None:
    """How the start image enters, by a diffusers folder's config.json; None where it does not say.

    Raises:
        CheckpointError: if there is a config.json that cannot be read.
    """
    config = _transformer_folder(path) / "config.json"
    if not path.is_dir() or not config.is_file():
        return None
    try:
        said = json.loads(config.read_text(encoding="utf-8")).get("image_condition_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{config} cannot be read ({error}). Download the folder again.") from error
    return next((f.i2v_mode for f in all_families() if said is not None and f.diffusers_mode == said), None)

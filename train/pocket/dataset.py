"""Rendered pocket portraits on disk: numbered safetensors shards of uint8 clips, written atomically, resumable.

Clip i of a folder is ``portrait_clip(first_seed + i)``, so a folder can be continued or regrown at any time, and a
held-out set is simply another range of seeds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, portrait_clip

logger = logging.getLogger(__name__)

INDEX_NAME = "portraits.json"
# Training clips count up from 0; the held-out range is far from any of them.
HELD_OUT_SEED = 10_000_000


class PortraitFolderError(MagicDistillError):
    """A folder of rendered portraits is missing, incomplete, or was made with other settings."""


class RenderConfig(BaseModel):
    """What a folder of rendered portraits holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(4000, ge=1)
    first_seed: int = Field(0, ge=0)
    frames: int = Field(DEFAULT_FRAMES, ge=1)
    size: int = Field(DEFAULT_SIZE, ge=16, multiple_of=16)
    shard_clips: int = Field(250, ge=1)

    @property
    def shards(self) -> int:
        """How many files the folder has when complete."""
        return -(-self.clips // self.shard_clips)

    def shard_range(self, shard: int) -> range:
        """The clip numbers in file ``shard``."""
        return range(shard * self.shard_clips, min(self.clips, (shard + 1) * self.shard_clips))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"portraits-{shard:05d}.safetensors"


def render_folder(
    config: RenderConfig, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Render what is still missing of ``config`` into ``folder``; ``progress(done, total)`` is told after each clip.

    A folder may grow (more clips) but not change otherwise. Raises PortraitFolderError on such a change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX_NAME
    if index.exists():
        made = _read_index(folder)
        if made.model_copy(update={"clips": config.clips}) != config:
            raise PortraitFolderError(
                f"{folder} holds portraits made with {made}, which differ from the ones asked for ({config}). "
                "Use another folder, or the same settings."
            )
    done = 0
    for shard in range(config.shards):
        numbers = config.shard_range(shard)
        path = _shard_path(folder, shard)
        if not (path.exists() and _clips_in(path) == len(numbers)):
            clips = []
            for number in numbers:
                clips.append(portrait_clip(config.first_seed + number, config.frames, config.size))
                progress(done + len(clips), config.clips)
            partial = path.with_suffix(".partial")
            save_file({"frames": torch.stack(clips)}, partial)
            os.replace(partial, path)
        done += len(numbers)
        progress(done, config.clips)
    partial = index.with_suffix(".partial")
    partial.write_text(json.dumps(config.model_dump(), indent=1))
    os.replace(partial, index)
    logger.info("%s: %d clips in %d shards", folder, config.clips, config.shards)


def _clips_in(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.get_slice("frames").get_shape()[0])


def _read_index(folder: Path) -> RenderConfig:
    try:
        return RenderConfig.model_validate_json((folder / INDEX_NAME).read_text())
    except FileNotFoundError as error:
        raise PortraitFolderError(
            f"{folder} is not a complete folder of portraits: {INDEX_NAME} is missing. "
            "Make it, or finish it, with `magicdistill pocket render`."
        ) from error
    except ValidationError as error:
        raise PortraitFolderError(f"{folder / INDEX_NAME} is damaged: {error}") from error


class PortraitFolder:
    """Random access to the clips of a rendered folder, read from memory-mapped shards."""

    def __init__(self, folder: Path) -> None:
        self.config = _read_index(folder)
        self._slices = []
        for shard in range(self.config.shards):
            path = _shard_path(folder, shard)
            if not path.exists():
                raise PortraitFolderError(f"{path} is missing. Run `magicdistill pocket render` again to replace it.")
            self._slices.append(safe_open(path, "pt").get_slice("frames"))

    def __len__(self) -> int:
        return self.config.clips

    def clip(self, number: int) -> Tensor:
        """uint8 ``[T, H, W, 3]``."""
        shard, place = divmod(number, self.config.shard_clips)
        return self._slices[shard][place : place + 1][0]


def to_unit_frames(clips: Tensor) -> Tensor:
    """uint8 ``[..., T, H, W, 3]`` to float32 ``[..., T, 3, H, W]`` in [0, 1]."""
    return clips.movedim(-1, -3).float() / 255


def held_out_clips(count: int, frames: int = DEFAULT_FRAMES, size: int = DEFAULT_SIZE) -> Tensor:
    """Clips no training folder contains: uint8 ``[count, T, H, W, 3]``."""
    return torch.stack([portrait_clip(HELD_OUT_SEED + number, frames, size) for number in range(count)])

"""Folders of rendered pocket portraits: numbered safetensors shards of uint8 clips.

Shards are written atomically. Clip i of a folder is `portrait_clip(first_seed + i)`. A folder can therefore be
continued or extended at any time, and a held-out set is another range of seeds.
"""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.geometry import SIDE_MULTIPLE
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, portrait_clip

from ..config.sections import Section

logger = logging.getLogger(__name__)

INDEX_NAME = "portraits.json"
# Seeds of training clips start at 0. The held-out seeds are far above them.
HELD_OUT_SEED = 10_000_000


class PortraitFolderError(MagicDistillError):
    """Raised when a folder of rendered portraits is missing, is incomplete, or has other settings."""


class RenderConfig(Section):
    """Settings of a folder of rendered portraits."""

    clips: int = Field(4000, ge=1, description="Number of clips in the folder.")
    first_seed: int = Field(0, ge=0, description="Seed of the first clip. Each next clip uses the next seed.")
    frames: int = Field(DEFAULT_FRAMES, ge=1, description="Frames per clip.")
    size: int = Field(
        DEFAULT_SIZE, ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE, description="Width and height in pixels."
    )
    shard_clips: int = Field(250, ge=1, description="Clips per shard.")

    @property
    def shards(self) -> int:
        """Number of shards of the complete folder."""
        return -(-self.clips // self.shard_clips)

    def shard_range(self, shard: int) -> range:
        """Return the numbers of the clips in the shard with this number; both count from 0."""
        return range(shard * self.shard_clips, min(self.clips, (shard + 1) * self.shard_clips))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"portraits-{shard:05d}.safetensors"


def render_clips(seeds: Sequence[int], frames: int, size: int, processes: int = 1) -> Iterator[Tensor]:
    """Render the clips of some seeds one after another, and yield each as uint8 `[T, H, W, 3]` on the CPU.

    Args:
        seeds: the seeds, in the order of the clips.
        frames: frames per clip.
        size: width and height in pixels.
        processes: number of processes that render; 1 renders in this process.
    """
    render = partial(_render, frames=frames, size=size)
    if processes == 1:
        yield from (torch.from_numpy(render(seed)) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from (torch.from_numpy(clip) for clip in pool.imap(render, seeds, chunksize=16))


def _render(seed: int, frames: int, size: int) -> np.ndarray:
    # numpy, because tensors are sent between processes through shared memory, which may be missing in a container.
    return portrait_clip(seed, frames, size).numpy()


def render_folder(
    config: RenderConfig,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int = 1,
) -> None:
    """Render the clips that are missing in a folder.

    Args:
        config: settings of the folder. An existing folder may get more clips, but its other settings must be the same.
        folder: the folder of portraits.
        progress: called with (done, total) after each clip.
        processes: number of processes that render; 1 renders in this process.

    Raises:
        PortraitFolderError: if the folder has other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX_NAME
    if index.exists():
        made = _read_index(folder)
        if made.model_copy(update={"clips": config.clips}) != config:
            raise PortraitFolderError(
                f"{folder} holds portraits with the settings {made}. They differ from the new settings ({config}). "
                "Use another folder, or the same settings."
            )
    missing = [shard for shard in range(config.shards) if not _is_complete(folder, shard, config)]
    seeds = [config.first_seed + number for shard in missing for number in config.shard_range(shard)]
    done = config.clips - len(seeds)
    rendered = render_clips(seeds, config.frames, config.size, processes)
    for shard in missing:
        clips = []
        for _ in config.shard_range(shard):
            clips.append(next(rendered))
            done += 1
            progress(done, config.clips)
        path = _shard_path(folder, shard)
        begun = path.with_suffix(".partial")
        save_file({"frames": torch.stack(clips)}, begun)
        os.replace(begun, path)
    begun = index.with_suffix(".partial")
    begun.write_text(json.dumps(config.model_dump(), indent=1))
    os.replace(begun, index)
    logger.info("%s: %d clips in %d shards", folder, config.clips, config.shards)


def _is_complete(folder: Path, shard: int, config: RenderConfig) -> bool:
    path = _shard_path(folder, shard)
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        return int(file.get_slice("frames").get_shape()[0]) == len(config.shard_range(shard))


def _read_index(folder: Path) -> RenderConfig:
    try:
        return RenderConfig.model_validate_json((folder / INDEX_NAME).read_text())
    except FileNotFoundError as error:
        raise PortraitFolderError(
            f"{folder} is not a complete folder of portraits: {INDEX_NAME} is missing. "
            "Render or finish it with `magicdistill pocket render`."
        ) from error
    except ValidationError as error:
        raise PortraitFolderError(
            f"{folder / INDEX_NAME} is damaged: {error}. Delete it and run `magicdistill pocket render` again with "
            "the same settings."
        ) from error


class PortraitFolder:
    """Random access to the clips of a rendered folder. They are memory-mapped for a CPU and all loaded on a GPU."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Open a folder that `render_folder` wrote.

        Args:
            folder: the folder of portraits.
            device: a CPU reads clips from memory maps; a GPU holds all clips.

        Raises:
            PortraitFolderError: if the folder is incomplete or damaged.
        """
        self.config = _read_index(folder)
        self._slices: list[Any] = []
        for shard in range(self.config.shards):
            path = _shard_path(folder, shard)
            if not path.exists():
                raise PortraitFolderError(f"{path} is missing. Run `magicdistill pocket render` again to render it.")
            frames = safe_open(path, "pt").get_slice("frames")
            self._slices.append(frames if torch.device(device).type == "cpu" else frames[:].to(device))

    def __len__(self) -> int:
        return self.config.clips

    def require(self, clips: int, frames: int, size: int) -> None:
        """Check the number of clips and their size.

        Args:
            clips: smallest number of clips.
            frames: frames per clip.
            size: width and height in pixels.

        Raises:
            PortraitFolderError: if there are fewer clips, or they have another number of frames or another size.
        """
        have = self.config
        if have.clips < clips or (have.frames, have.size) != (frames, size):
            raise PortraitFolderError(
                f"The folder of portraits holds {have.clips} clips of {have.frames} frames, {have.size} pixels. "
                f"{clips} clips of {frames} frames, {size} pixels are needed. Render such a folder, or use fewer clips."
            )

    def clip(self, number: int) -> Tensor:
        """Return the clip with a number, from 0: uint8 `[T, H, W, 3]`."""
        shard, place = divmod(number, self.config.shard_clips)
        return self._slices[shard][place : place + 1][0]


def to_unit_frames(clips: Tensor) -> Tensor:
    """Convert uint8 clips `[..., T, H, W, 3]` to float32 `[..., T, 3, H, W]` in [0, 1]."""
    return clips.movedim(-1, -3).float() / 255


def held_out_clips(count: int, frames: int = DEFAULT_FRAMES, size: int = DEFAULT_SIZE) -> Tensor:
    """Render clips that are in no training folder: uint8 `[count, T, H, W, 3]`.

    Args:
        count: number of clips.
        frames: frames T per clip.
        size: width and height in pixels.
    """
    return torch.stack([portrait_clip(HELD_OUT_SEED + number, frames, size) for number in range(count)])

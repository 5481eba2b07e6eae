"""Folders of rendered pocket portraits: numbered safetensors shards of uint8 clips.

Shards are written atomically. Clip i of a folder is `portrait_clip(first_seed + i)`. A folder can therefore be
continued or extended at any time, and a held-out set is another range of seeds.
"""

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magicdistill_core.errors import CheckpointError, MagicDistillError, cause
from magicdistill_core.files import enough_memory, write_text
from magicdistill_core.geometry import SIDE_MULTIPLE
from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, portrait_clip
from magicdistill_core.safetensors_file import explained_writing, read_header, write_safetensors

from ..config.sections import Section
from ..folder_lock import folder_lock

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
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape `(T, H, W, 3)` of a clip."""
        return (self.frames, self.size, self.size, 3)

    @property
    def shards(self) -> int:
        """Number of shards of the complete folder."""
        return -(-self.clips // self.shard_clips)

    def shard_range(self, shard: int) -> range:
        """Return the numbers of the clips in the shard with this number; both count from 0."""
        return range(shard * self.shard_clips, min(self.clips, (shard + 1) * self.shard_clips))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"portraits-{shard:05d}.safetensors"


def render_clips(
    seeds: Sequence[int],
    frames: int,
    size: int,
    processes: int = 1,
    future: int = 0,
    directions: Sequence[Direction] | None = None,
) -> Iterator[Tensor]:
    """Render the clips of some seeds one after another, and yield each as uint8 `[T, H, W, 3]` on the CPU.

    Args:
        seeds: the seeds, in the order of the clips.
        frames: frames per clip.
        size: width and height in pixels.
        processes: number of processes that render; 1 renders in this process.
        future: which continuation of each first frame, as for `portrait_clip`.
        directions: what the person of each clip does. None draws it.
    """
    render = partial(_render, frames=frames, size=size, future=future)
    clips = list(zip(seeds, [None] * len(seeds) if directions is None else directions, strict=True))
    if processes == 1:
        yield from (torch.from_numpy(render(clip)) for clip in clips)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from (torch.from_numpy(clip) for clip in pool.imap(render, clips, chunksize=16))


def _render(clip: tuple[int, Direction | None], frames: int, size: int, future: int) -> np.ndarray:
    seed, direction = clip
    # numpy, because tensors are sent between processes through shared memory, which may be missing in a container.
    return portrait_clip(seed, frames, size, future, direction).numpy()


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
        PortraitFolderError: if the folder has other settings, or shards of other portraits.
        MagicDistillError: if the folder cannot be written, or another process writes it.
    """
    with folder_lock(folder, "magicdistill pocket render"):
        _render_folder(config, folder, progress, processes)


def _render_folder(config: RenderConfig, folder: Path, progress: Callable[[int, int], None], processes: int) -> None:
    if (folder / INDEX_NAME).exists():
        made = _read_index(folder)
        if made.model_copy(update={"clips": config.clips}) != config:
            raise PortraitFolderError(
                f"{folder} holds portraits with the settings {made}. They differ from the new settings ({config}). "
                "Use another folder, or the same settings."
            )
        config = config.model_copy(update={"clips": max(made.clips, config.clips)})
    else:
        _check_portraits(folder, config)
        # Written first: the settings of a folder that is not finished are known too.
        _write_index(folder, config)
    for unfinished in folder.glob(".portraits-*.tmp"):  # left by a killed process
        unfinished.unlink(missing_ok=True)
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
        write_safetensors(_shard_path(folder, shard), {"frames": torch.stack(clips)}, {})
    _write_index(folder, config)
    logger.info("%s: %d clips in %d shards", folder, config.clips, config.shards)


def _write_index(folder: Path, config: RenderConfig) -> None:
    with explained_writing(folder / INDEX_NAME):
        write_text(folder / INDEX_NAME, json.dumps(config.model_dump(), indent=1))


def _shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of a shard's clips; None if there is no shard that can be read."""
    try:
        return read_header(path)["frames"].shape
    except (CheckpointError, KeyError):
        return None


def _is_complete(folder: Path, shard: int, config: RenderConfig) -> bool:
    clips = len(config.shard_range(shard))
    found = _shape(_shard_path(folder, shard))
    # A folder that was larger for a moment may have a last shard with more clips.
    return found is not None and found[0] >= clips and found[1:] == config.clip_shape


def _check_portraits(folder: Path, config: RenderConfig) -> None:
    """Check that the shards of a folder without an index are those of the settings, by their first clips.

    Raises:
        PortraitFolderError: if a shard holds other portraits.
    """
    for shard in range(config.shards):
        path = _shard_path(folder, shard)
        found = _shape(path)
        if found is None:
            continue
        if found[1:] == config.clip_shape:
            first = portrait_clip(config.first_seed + config.shard_range(shard)[0], config.frames, config.size)
            if torch.equal(_read(path, slice(0, 1))[0], first):
                continue
        raise PortraitFolderError(
            f"{path} holds other portraits than those of the settings ({config}), and the folder has no {INDEX_NAME}. "
            f"Restore {INDEX_NAME}, render with the settings of the shard, or use another folder."
        )


def _read(path: Path, clips: slice) -> Tensor:
    try:
        with enough_memory(path), safe_open(path, "pt") as file:
            frames: Tensor = file.get_slice("frames")[clips]
            return frames
    except (SafetensorError, OSError) as error:
        raise PortraitFolderError(
            f"{path} cannot be read ({cause(error)}). Run `magicdistill pocket render` again to render it."
        ) from error


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
            f"{folder / INDEX_NAME} is damaged (number of wrong values: {error.error_count()}). Delete it and run "
            f"`magicdistill pocket render` again with the same settings."
        ) from error


class PortraitFolder:
    """Random access to the clips of a rendered folder. For a CPU they are read one by one, for a GPU all are loaded."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Open a folder that `render_folder` wrote.

        Args:
            folder: the folder of portraits.
            device: a CPU reads each clip from its file; a GPU holds all clips.

        Raises:
            PortraitFolderError: if the folder is incomplete or damaged.
        """
        self.config = _read_index(folder)
        self._folder = folder
        for shard in range(self.config.shards):
            if not _is_complete(folder, shard, self.config):
                raise PortraitFolderError(
                    f"{_shard_path(folder, shard)} is missing or incomplete. Run `magicdistill pocket render` again to "
                    f"render it."
                )
        self._loaded: list[Tensor] = []
        if torch.device(device).type != "cpu":
            paths = (_shard_path(folder, shard) for shard in range(self.config.shards))
            self._loaded = [_read(path, slice(None)).to(device) for path in paths]

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
        if self._loaded:
            return self._loaded[shard][place]
        return _read(_shard_path(self._folder, shard), slice(place, place + 1))[0]


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

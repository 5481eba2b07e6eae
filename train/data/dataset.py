"""Latent datasets: a folder with an index `dataset.json` and safetensors shards.

Writing can be interrupted and continued. Reading uses memory maps.

A shard holds `latents` `[N, 16, T, H, W]` and `image_latents` `[N, 16, 1, H, W]` (the first frame encoded as a still
image), both in the network's scale. For Wan 2.1 `image_latents` are `[N, 16, T, H, W]` (the first frame and gray frames
encoded together), and `image_features` `[N, 257, 1280]` are the CLIP features of the first frame.

The index names a new shard only after the shard is on disk. An interrupted preparation loses at most the samples of one
unfinished shard.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families import all_families
from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.files import write_text
from magicdistill_core.geometry import latent_shape
from magicdistill_core.safetensors_file import explained_writing, write_safetensors

logger = logging.getLogger(__name__)

INDEX_NAME = "dataset.json"
LATENTS, IMAGE_LATENTS, IMAGE_FEATURES = "latents", "image_latents", "image_features"
_SHARD_SAMPLES = 256
_SHARD_BYTES = 256 * 1024**2

StoredDtype = Literal["float16", "bfloat16", "float32"]


class DatasetError(MagicDistillError):
    """Raised when a latent dataset is missing, damaged, or made with other settings than the requested ones."""


class LatentBatch(NamedTuple):
    """A batch of samples in float32.

    Attributes:
        latents: clean latents `[B, 16, T, H, W]`.
        image_latents: latents of the start images, `[B, 16, 1, H, W]` (Wan 2.1: T frames).
    """

    latents: Tensor
    image_latents: Tensor


class Shard(BaseModel):
    """One shard, as the index describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    bytes: int = Field(description="Size of the file in bytes. It reveals a truncated copy at once.")
    samples: list[str] = Field(description="Keys of the samples, in the order of the rows.")


class DatasetIndex(BaseModel):
    """The contents of `dataset.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    family: str = Field("hunyuan_video", description="Architecture that the latents and start images are encoded for.")
    frames: int = Field(description="Frames of each clip, 4n + 1.")
    height: int
    width: int
    fps: float = Field(gt=0)
    stride: int | None = Field(
        default=None,
        gt=0,
        description="Frames from the start of one window of a video to the start of the next. "
        "None for ready-made clips.",
    )
    dtype: StoredDtype
    vae_sha256: str = Field(description="sha256 of the VAE that encoded the latents.")
    image_encoder_sha256: str | None = Field(
        None, description="sha256 of the CLIP image encoder. None without features."
    )
    shards: list[Shard] = []
    sources: list[str] = Field(default=[], description="Source videos whose samples are all in the dataset.")

    @property
    def count(self) -> int:
        """Number of samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of one sample, by name; errors as in `sample_shapes`."""
        return sample_shapes(self.family, self.frames, self.height, self.width)


def sample_shapes(architecture: str, frames: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of one sample, by the tensor's name in a shard.

    Args:
        architecture: name of the architecture that the start image is encoded for, such as `hunyuan_video`.
        frames: number of frames of the clip, 4n + 1.
        height: height of the clip in pixels, a multiple of 16.
        width: width of the clip in pixels, a multiple of 16.

    Raises:
        DatasetError: if the architecture is unknown.
        MagicDistillError: if the geometry does not fit, as in `check_geometry`.
    """
    of_kind = [f for f in all_families() if f.architecture.name == architecture and f.takes_image]
    if not of_kind:
        raise DatasetError(
            f"The dataset is for the architecture {architecture!r}, which this version does not know. Correct the "
            f"index, or update this project."
        )
    channels, latent_frames, rows, columns = latent_shape(frames, height, width)[1:]
    image = (channels, of_kind[0].image_frames(latent_frames), rows, columns)
    shapes: dict[str, tuple[int, ...]] = {LATENTS: (channels, latent_frames, rows, columns), IMAGE_LATENTS: image}
    features = of_kind[0].feature_shape
    return shapes if features is None else shapes | {IMAGE_FEATURES: features}


def read_index(folder: Path) -> DatasetIndex:
    """Read a dataset's index.

    Args:
        folder: the dataset's folder.

    Raises:
        DatasetError: if the folder has no index, or the index cannot be read.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise DatasetError(
            f"{folder} is not a latent dataset: it has no {INDEX_NAME}. Make a dataset with "
            f"`magicdistill prepare --videos DIR --out {folder}`, or correct the path."
        )
    try:
        return DatasetIndex.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}). Expected the index that `magicdistill prepare` writes. Restore the "
            f"file, or prepare the dataset again."
        ) from error


class LatentWriter:
    """A writer that adds samples to a dataset, used in a `with` block. Leaving the block writes the unfinished shard.

    Opening an existing dataset continues it. `key in writer` tells whether a sample is already stored, and
    `finished(source)` whether all samples of a source video are.
    """

    def __init__(self, folder: Path, index: DatasetIndex) -> None:
        """Open a dataset folder, which need not exist yet.

        Args:
            folder: the dataset's folder.
            index: the settings of the dataset, without shards and sources.

        Raises:
            DatasetError: if the folder holds a dataset with another geometry, frame rate, dtype, VAE or image encoder.
        """
        self._folder = folder
        self._shapes = index.tensor_shapes()
        self._dtype = getattr(torch, index.dtype)
        if (folder / INDEX_NAME).exists():
            index = _continued(folder, read_index(folder), index)
        self._index = index
        sample_bytes = self._dtype.itemsize * sum(torch.Size(shape).numel() for shape in self._shapes.values())
        self._shard_samples = max(1, min(_SHARD_SAMPLES, _SHARD_BYTES // sample_bytes))
        self._keys = {key for shard in index.shards for key in shard.samples}
        self._sources = set(index.sources)
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_sources: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def finished(self, source: str) -> bool:
        """Return whether `finish_source` was called for this source video, in this or an earlier preparation."""
        return source in self._sources

    def append(self, key: str, latent: Tensor, image: StartImage) -> None:
        """Add one sample, and write a shard when enough samples are waiting.

        Args:
            key: the sample's unique name, such as the source video and its window.
            latent: clean latent `[16, T, H, W]` in the network's scale.
            image: one start image, as a batch of one.

        Raises:
            ValueError: if the key is already stored, or a shape does not fit the dataset's geometry.
            CheckpointError: as for `flush`.
        """
        given = {LATENTS: latent, IMAGE_LATENTS: image.latents[0]}
        if image.features is not None:
            given[IMAGE_FEATURES] = image.features[0]
        if key in self._keys:
            raise ValueError(f"Sample {key} is already in the dataset. Check `key in writer` first.")
        if (shapes := {name: tuple(tensor.shape) for name, tensor in given.items()}) != self._shapes:
            raise ValueError(f"Sample {key} has tensors {shapes}, expected {self._shapes}.")
        self._pending[key] = {name: tensor.detach().cpu().to(self._dtype) for name, tensor in given.items()}
        self._keys.add(key)
        if len(self._pending) >= self._shard_samples:
            self.flush()

    def finish_source(self, source: str) -> None:
        """Record that all samples of a source video were appended. It is written together with the samples."""
        if source not in self._sources:
            self._sources.add(source)
            self._pending_sources.append(source)

    def flush(self) -> None:
        """Write the waiting samples as a shard, then the index.

        Raises:
            CheckpointError: if the shard or the index cannot be written; the samples keep waiting.
        """
        if not self._pending and not self._pending_sources and (self._folder / INDEX_NAME).exists():
            return
        shards = list(self._index.shards)
        if self._pending:
            name = f"shard-{len(shards):05d}.safetensors"
            samples = self._pending.values()
            write_safetensors(
                self._folder / name, {key: torch.stack([s[key] for s in samples]) for key in self._shapes}, {}
            )
            shards.append(Shard(file=name, bytes=(self._folder / name).stat().st_size, samples=list(self._pending)))
        sources = [*self._index.sources, *self._pending_sources]
        self._index = self._index.model_copy(update={"shards": shards, "sources": sources})
        with explained_writing(self._folder / INDEX_NAME):
            write_text(self._folder / INDEX_NAME, self._index.model_dump_json(indent=1))
        self._pending, self._pending_sources = {}, []


def _continued(folder: Path, found: DatasetIndex, wanted: DatasetIndex) -> DatasetIndex:
    settings = ("family", "frames", "height", "width", "fps", "stride", "dtype", "vae_sha256", "image_encoder_sha256")
    differing = [
        f"{n} {getattr(found, n)} (now: {getattr(wanted, n)})"
        for n in settings
        if getattr(found, n) != getattr(wanted, n)
    ]
    if differing:
        raise DatasetError(
            f"{folder} holds a dataset made with other settings: {', '.join(differing)}. Continue it with the same "
            f"settings, or write to another folder."
        )
    logger.info("continuing %s: it already has %d samples", folder, found.count)
    return found


class LatentDataset:
    """Read access to a latent dataset by sample number. Tensors are read on demand through memory maps."""

    def __init__(self, folder: str | Path) -> None:
        """Open a dataset, and check that its shards are complete.

        Args:
            folder: the dataset's folder.

        Raises:
            DatasetError: if the folder is not a dataset or has no samples, or if a shard is missing, truncated or of
                another geometry.
        """
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._files: dict[int, safe_open] = {}
        self._places = [(s, row) for s, shard in enumerate(self.index.shards) for row in range(len(shard.samples))]
        self._shapes = self.index.tensor_shapes()
        if not self._places:
            raise DatasetError(
                f"The dataset {self.folder} holds no samples. Run `magicdistill prepare` on usable clips."
            )
        for number in range(len(self.index.shards)):
            self._open(number)

    @property
    def frames(self) -> int:
        """Frames of each clip."""
        return self.index.frames

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.index.height

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.index.width

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.index.fps

    def __len__(self) -> int:
        return len(self._places)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape `(16, T, H, W)` of each latent."""
        return self._shapes[LATENTS]

    def check_family(self, family: Family) -> None:
        """Refuse a teacher that this dataset does not suit.

        Args:
            family: the teacher's family.

        Raises:
            DatasetError: if the dataset was made for another architecture, or its clips are too short for the teacher.
        """
        if family.architecture.name != self.index.family:
            raise DatasetError(
                f"{self.folder} holds latents and start images for {self.index.family}, but the teacher is of "
                f"{family.architecture.name} ({family.architecture.title}), which uses another VAE and other start "
                f"images. Prepare the data with that VAE."
            )
        if family.kept_frames and self.latent_shape[1] - family.kept_frames < 2:
            raise DatasetError(
                f"Clips of {self.frames} frames are too short for this teacher. Its first latent frame is the start "
                f"image, so only {self.latent_shape[1] - family.kept_frames} would be generated, without motion. "
                f"Prepare clips of 9 frames or more."
            )

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        """Read the latents and start images of some samples; errors as in `latents`.

        Args:
            indices: the samples' numbers, from 0. The batch has their order.
        """
        return LatentBatch(self.latents(indices), self.image_latents(indices))

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Read only the clean latents `[B, 16, T, H, W]` of some samples, as float32 on the CPU.

        Args:
            indices: the samples' numbers, from 0.

        Raises:
            IndexError: if a number is not in `[0, len(dataset))`.
            DatasetError: if a shard can no longer be read.
        """
        return self._read(LATENTS, indices)

    def image_latents(self, indices: Sequence[int]) -> Tensor:
        """Read only the latents of the start images, as float32 on the CPU; errors as in `latents`.

        Args:
            indices: the samples' numbers, from 0.

        Returns:
            `[B, 16, 1, H, W]`; for Wan 2.1 `[B, 16, T, H, W]`.
        """
        return self._read(IMAGE_LATENTS, indices)

    def start_image(self, indices: Sequence[int]) -> StartImage:
        """Read the start images of some samples in the form that the family expects; errors as in `latents`.

        Args:
            indices: the samples' numbers, from 0.

        Returns:
            A batch of start images in float32 on the CPU.
        """
        features = self._read(IMAGE_FEATURES, indices) if IMAGE_FEATURES in self._shapes else None
        return StartImage(self.image_latents(indices), features)

    def _read(self, key: str, indices: Sequence[int]) -> Tensor:
        rows = []
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"There is no sample {index}: the dataset has {len(self)} samples, numbered from 0.")
            number, row = self._places[index]
            try:
                rows.append(self._files[number].get_slice(key)[row : row + 1])
            except (SafetensorError, OSError) as error:
                raise self._damaged(number, str(error)) from error
        return torch.cat(rows).float()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        # Memory maps cannot be sent to another process, so each data worker opens its own.
        self.__init__(state["folder"])  # type: ignore[misc]

    def _damaged(self, number: int, why: str) -> DatasetError:
        name = self.index.shards[number].file
        return DatasetError(
            f"Shard {name} of {self.folder} cannot be used: {why}. Copy the shard again from its original, or delete "
            f"the folder and prepare the dataset again."
        )

    def _open(self, number: int) -> None:
        shard = self.index.shards[number]
        path = self.folder / shard.file
        if not path.is_file():
            raise self._damaged(number, "the file is missing")
        size = path.stat().st_size
        if size != shard.bytes:
            raise self._damaged(number, f"it has {size:,} bytes, but {shard.bytes:,} were written, so it is truncated")
        try:
            file = safe_open(path, framework="pt")
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in self._shapes}
        except (SafetensorError, OSError) as error:
            raise self._damaged(number, str(error)) from error
        expected = {key: (len(shard.samples), *shape) for key, shape in self._shapes.items()}
        if shapes != expected:
            raise self._damaged(number, f"its tensors are {shapes}, but the index states {expected}")
        self._files[number] = file

"""Writing of latent datasets: samples are collected into shards, and an interrupted preparation can be continued."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.files import write_text
from magicdistill_core.safetensors_file import explained_writing, write_safetensors

from .dataset_index import (
    IMAGE_FEATURES,
    IMAGE_LATENTS,
    INDEX_NAME,
    LATENTS,
    DatasetError,
    DatasetIndex,
    Shard,
    read_index,
)

logger = logging.getLogger(__name__)

_SHARD_SAMPLES = 256
_SHARD_BYTES = 256 * 1024**2


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

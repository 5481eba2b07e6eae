"""Writing of latent datasets: samples are collected into shards, and an interrupted preparation can be continued."""

import logging
from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.files import write_text
from magicdistill_core.safetensors_file import explained_writing, write_safetensors

from .contents import Source, content_of
from .dataset_index import (
    IMAGE_FEATURES,
    IMAGE_LATENTS,
    INDEX_NAME,
    LATENTS,
    Content,
    DatasetError,
    DatasetIndex,
    Shard,
    StoredDtype,
    check_shards,
)
from .finite import not_finite
from .index_file import read_index
from .text_index import TEXT_PREFIX, SamplePrompts, TextIndex
from .text_writer import TextWriter

logger = logging.getLogger(__name__)

_SHARD_SAMPLES = 256
_SHARD_BYTES = 256 * 1024**2


class NotFiniteError(DatasetError):
    """Raised when a sample holds a NaN or an infinite value. It is not stored."""


class LatentWriter:
    """A writer that adds samples to a dataset, used in a `with` block. Leaving the block writes the unfinished shard.

    Opening an existing dataset continues it. `key in writer` tells whether a sample is already stored, and
    `finished(source)` whether all samples of a source video are. The caller holds the folder's lock.

    Attributes:
        texts: the writer of the samples' prompts; None for a dataset without captions.
    """

    def __init__(self, folder: Path, index: DatasetIndex) -> None:
        """Open a dataset folder, which need not exist yet.

        Args:
            folder: the dataset's folder.
            index: the settings of the dataset, without shards and sources. `texts` is the text encoder, without files.

        Raises:
            DatasetError: if the folder holds a dataset with another geometry, frame rate, dtype, VAE, image encoder or
                text encoder, or one of its files is missing or truncated.
        """
        self._folder = folder
        self._shapes = index.tensor_shapes()
        if (folder / INDEX_NAME).exists():
            index = _continued(folder, read_index(folder), index)
        for pattern in (".shard-*.tmp", f".{TEXT_PREFIX}*.tmp"):  # left by a killed process, up to 256 MB each
            for unfinished in folder.glob(pattern):
                unfinished.unlink(missing_ok=True)
        self._index = index
        self._shard_samples = shard_samples(index)
        self._keys = {key for shard in index.shards for key in shard.samples}
        self._sources = dict.fromkeys(index.sources)
        self._contents = dict(index.contents)
        self._names: defaultdict[Content, list[str]] = defaultdict(list)
        for name, content in index.contents.items():
            self._names[content].append(name)
        # Sources of earlier versions, which stored only names.
        self._named = (self._sources.keys() | {key.rpartition("#")[0] for key in self._keys}) - self._contents.keys()
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._prompts: dict[str, SamplePrompts] = {}
        self.texts = None if index.texts is None else TextWriter(folder, index.texts)
        self._captions: defaultdict[str, set[str]] = defaultdict(set)
        for shard in index.shards:
            for key, prompts in zip(shard.samples, shard.prompts or [], strict=False):
                self._remember(key, prompts)

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

    def finished(self, source: Source) -> bool:
        """Return whether `finish_source` was called for this source video, in this or an earlier preparation."""
        return source.name in self._sources and self._contents.get(source.name, source.content) == source.content

    def source_of(self, name: str, path: Path, present: Container[str] = ()) -> Source:
        """Return the source that a video is in the dataset, known by its contents.

        A renamed video keeps its first name. A copy next to its original is a video of its own. Another video under a
        name that is taken gets a part of its hash as an addition to the name. A video that was incomplete before and
        has grown keeps its name. Samples of earlier versions have no contents, so there only the name counts.

        Args:
            name: the video's name relative to the folder of videos.
            path: the video file.
            present: the names of all videos in the folder.

        Raises:
            OSError: if the file cannot be read.
        """
        content = content_of(path)
        before = self._contents.get(name)
        if before == content:
            return Source(name, content)
        if former := [known for known in self._names[content] if known not in present]:
            return Source(former[0], content)
        if before is None or _begins_with(path, content, before):
            return Source(name, content)
        return Source(f"{name}@{content.sha256[:12]}", content)

    def captions_of(self, source: str) -> frozenset[str]:
        """Return the captions of a source video's samples in the dataset.

        Args:
            source: the source's name.
        """
        return frozenset(self._captions.get(source, ()))

    def append(
        self,
        key: str,
        latent: Tensor,
        image: StartImage,
        source: Source | None = None,
        prompts: SamplePrompts | None = None,
    ) -> None:
        """Add one sample, and write a shard when enough samples are waiting.

        Args:
            key: the sample's unique name, such as the source video and its window.
            latent: clean latent `[16, T, H, W]` in the network's scale.
            image: one start image, as a batch of one.
            source: the source video that the sample is from; None if it is from no file.
            prompts: the sample's prompts, from `texts.refer`; None for a dataset without captions.

        Raises:
            NotFiniteError: if a value is NaN or infinite, also after rounding to the stored dtype.
            ValueError: if the key is already stored, a shape does not fit the dataset's geometry, or `prompts` are
                missing or unexpected.
            CheckpointError: as for `flush`.
        """
        if key in self._keys:
            raise ValueError(f"Sample {key} is already in the dataset. Check `key in writer` first.")
        if (prompts is None) != (self.texts is None):
            raise ValueError(f"Sample {key} has {'no' if prompts is None else 'a'} caption, unlike the dataset.")
        self._pending[key] = stored_sample(key, latent, image, self._shapes, self._index.dtype)
        if prompts is not None:
            self._prompts[key] = prompts
            self._remember(key, prompts)
        self._keys.add(key)
        if source is not None:
            self._know(source)
        # Text states that depend on the image are larger than the latents of a small clip.
        texts = 0 if self.texts is None else self.texts.pending_bytes
        if len(self._pending) >= self._shard_samples or texts >= _SHARD_BYTES:
            self.flush()

    def finish_source(self, source: Source) -> None:
        """Record that all samples of a source video were appended. It is written together with the samples."""
        self._know(source)
        self._sources[source.name] = None

    def _know(self, source: Source) -> None:
        if source.name not in self._named:
            if self._contents.get(source.name) != source.content:
                self._names[source.content].append(source.name)
            self._contents[source.name] = source.content

    def _remember(self, key: str, prompts: SamplePrompts) -> None:
        assert self.texts is not None
        self._captions[key.rpartition("#")[0]].add(self.texts.caption(prompts))

    def flush(self) -> None:
        """Write the waiting prompts and samples as files, then the index.

        Raises:
            CheckpointError: if a file cannot be written; the samples keep waiting.
        """
        known = {"sources": list(self._sources), "contents": dict(self._contents)}
        same = all(getattr(self._index, name) == value for name, value in known.items())
        waiting = self._pending or (self.texts is not None and self.texts.pending_bytes)
        if not waiting and same and (self._folder / INDEX_NAME).exists():
            return
        shards, texts = list(self._index.shards), None
        if self.texts is not None:
            self.texts.flush()
            texts = self.texts.index
        if self._pending:
            name = f"shard-{len(shards):05d}.safetensors"
            samples = self._pending.values()
            write_safetensors(
                self._folder / name, {key: torch.stack([s[key] for s in samples]) for key in self._shapes}, {}
            )
            size = (self._folder / name).stat().st_size
            prompts = None if self.texts is None else [self._prompts[key] for key in self._pending]
            shards.append(Shard(file=name, bytes=size, samples=list(self._pending), prompts=prompts))
        self._index = self._index.model_copy(update={"shards": shards, "texts": texts, **known})
        with explained_writing(self._folder / INDEX_NAME):
            write_text(self._folder / INDEX_NAME, self._index.stored())
        self._pending, self._prompts = {}, {}


def shard_samples(index: DatasetIndex) -> int:
    """Return the number of samples in a full shard.

    Args:
        index: the settings of the dataset.
    """
    values = sum(torch.Size(shape).numel() for shape in index.tensor_shapes().values())
    return max(1, min(_SHARD_SAMPLES, _SHARD_BYTES // (values * getattr(torch, index.dtype).itemsize)))


def stored_sample(
    key: str, latent: Tensor, image: StartImage, shapes: dict[str, tuple[int, ...]], dtype: StoredDtype
) -> dict[str, Tensor]:
    """Return the tensors of a sample as a shard stores them.

    Args:
        key: the sample's name.
        latent: clean latent `[16, T, H, W]`.
        image: one start image, as a batch of one.
        shapes: the expected shapes, from `tensor_shapes`.
        dtype: the stored dtype.

    Raises:
        NotFiniteError: if a value is NaN or infinite, also after rounding.
        ValueError: if a shape differs.
    """
    given = {LATENTS: latent, IMAGE_LATENTS: image.latents[0]}
    if image.features is not None:
        given[IMAGE_FEATURES] = image.features[0]
    if (found_shapes := {name: tuple(tensor.shape) for name, tensor in given.items()}) != shapes:
        raise ValueError(f"Sample {key} has tensors {found_shapes}, expected {shapes}.")
    stored = {name: tensor.detach().cpu().to(getattr(torch, dtype)) for name, tensor in given.items()}
    for name, tensor in stored.items():
        if found := not_finite(tensor):
            raise NotFiniteError(_overflow(key, name, found, given[name], dtype))
    return stored


def _begins_with(path: Path, content: Content, before: Content) -> bool:
    """Return whether a file is the complete version of an earlier, incomplete copy."""
    return before.bytes < content.bytes and content_of(path, before.bytes) == before


def _overflow(key: str, name: str, found: str, given: Tensor, dtype: str) -> str:
    if not_finite(given):
        why = "The VAE gives such values if it overflows in half precision. Use `--device cpu` (full precision)"
    else:
        why = f"They are finite before they are rounded to {dtype}. Use `--dtype bf16` and another folder"
    return f"The {name} of {key} have {found}. {why}, or check the VAE and the clip."


def _encoder(texts: TextIndex | None) -> str:
    return "none" if texts is None else f"{texts.encoder_sha256[:12]} with template {texts.template or 'unknown'}"


def check_settings(folder: Path, found: DatasetIndex, wanted: DatasetIndex) -> None:
    """Refuse to continue a dataset with other settings.

    Args:
        folder: the dataset's folder.
        found: its index.
        wanted: the settings of now.

    Raises:
        DatasetError: if a setting, an encoder or the format differs.
    """
    if found.format_version != wanted.format_version:
        one, other = ("prepare", "data encode") if found.format_version == 1 else ("data encode", "prepare")
        raise DatasetError(
            f"{folder} holds a dataset that `magicdistill {one}` wrote, which `magicdistill {other}` cannot continue. "
            f"Write to another folder."
        )
    settings = (
        *("family", "frames", "height", "width", "fps", "stride", "dtype", "vae_sha256", "image_encoder_sha256"),
        "rules_sha256",
    )
    differing = [
        f"{n} {getattr(found, n)} (now: {getattr(wanted, n)})"
        for n in settings
        if getattr(found, n) != getattr(wanted, n)
    ]
    encoders = [_encoder(index.texts) for index in (found, wanted)]
    if encoders[0] != encoders[1]:
        differing.append(f"text encoder {encoders[0]} (now: {encoders[1]})")
    if differing:
        raise DatasetError(
            f"{folder} holds a dataset made with other settings: {', '.join(differing)}. Continue it with the same "
            f"settings, or write to another folder."
        )


def _continued(folder: Path, found: DatasetIndex, wanted: DatasetIndex) -> DatasetIndex:
    check_settings(folder, found, wanted)
    check_shards(folder, found)
    logger.info("continuing %s: it already has %d samples", folder, found.count)
    if by_name := set(found.sources) - found.contents.keys():
        logger.warning(
            "%s: %d of its videos are known only by their names, because an earlier version prepared them. Another "
            "video with one of these names is not added. Prepare such videos into another folder.",
            folder,
            len(by_name),
        )
    return found

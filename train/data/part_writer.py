"""Writing of one part of a dataset in parts (`parts.py`)."""

import hashlib
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.files import write_text
from magicdistill_core.safetensors_file import explained_writing, write_safetensors

from .contents import Source
from .dataset_index import INDEX_NAME, Content, DatasetIndex
from .dataset_writer import check_settings, shard_samples, stored_sample
from .index_file import read_index
from .parts import PART_PREFIX, PARTS_VERSION, SCHEMA, Part, connect, explained, part_folders


class PartWriter:
    """A writer that adds samples to one part, used in a `with` block. Leaving the block writes the unfinished shard.

    Opening an existing part continues it. The caller holds the lock of the part's folder.
    """

    def __init__(self, folder: Path, index: DatasetIndex, part: str) -> None:
        """Open a part, which need not exist yet, of a dataset that need not exist yet.

        Args:
            folder: the dataset's folder.
            index: the settings of the dataset, without shards and sources.
            part: name of the part, such as `1of4`.

        Raises:
            DatasetError: if the folder holds a dataset with other settings, or of the first format.
        """
        index = index.model_copy(update={"format_version": PARTS_VERSION})
        if (folder / INDEX_NAME).exists():
            check_settings(folder, read_index(folder), index)
        else:  # several processes may write the same text
            with explained_writing(folder / INDEX_NAME):
                write_text(folder / INDEX_NAME, index.stored())
        self._folder = folder / f"{PART_PREFIX}{part}"
        self._folder.mkdir(exist_ok=True)
        for unfinished in self._folder.glob(".shard-*.tmp"):  # left by a killed process
            unfinished.unlink(missing_ok=True)
        self._others = [Part(other) for other in part_folders(folder) if other != self._folder]
        self._dtype, self._shapes = index.dtype, index.tensor_shapes()
        self._shard_samples = shard_samples(index)
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._finished: dict[str, Content] = {}
        with explained(self._folder):
            self._database: sqlite3.Connection = connect(self._folder, "rwc")
            self._database.executescript(SCHEMA)
            last = self._database.execute("SELECT number, total, digest FROM shards ORDER BY number DESC").fetchone()
            (count,) = self._database.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM samples").fetchone()
        number, size, digest = last or (-1, 0, "")
        self._number, self._bytes, self._digest = int(number) + 1, int(size), str(digest)
        self._count = int(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._database.close()

    def __contains__(self, key: str) -> bool:
        if key in self._pending or any(key in other for other in self._others):
            return True
        with explained(self._folder):
            return self._database.execute("SELECT 1 FROM samples WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        return self._count + len(self._pending)

    def finished(self, source: Source) -> bool:
        """Return whether all samples of a source video are in the part.

        Args:
            source: the video.
        """
        query = "SELECT 1 FROM sources WHERE name = ? AND bytes = ? AND sha256 = ?"
        with explained(self._folder):
            row = self._database.execute(query, (source.name, source.content.bytes, source.content.sha256)).fetchone()
        return row is not None

    def append(self, key: str, latent: Tensor, image: StartImage) -> None:
        """Add one sample, and write a shard when enough samples are waiting.

        Args:
            key: the sample's unique name: source video and window.
            latent: clean latent `[16, T, H, W]` in the network's scale.
            image: one start image, as a batch of one.

        Raises:
            NotFiniteError: if a value is NaN or infinite, also after rounding to the stored dtype.
            ValueError: if the key is already stored, or a shape does not fit the dataset's geometry.
        """
        if key in self:
            raise ValueError(f"Sample {key} is already in the dataset. Check `key in writer` first.")
        self._pending[key] = stored_sample(key, latent, image, self._shapes, self._dtype)
        if len(self._pending) >= self._shard_samples:
            self.flush()

    def finish_source(self, source: Source) -> None:
        """Record that all samples of a source video were appended. It is written together with the samples.

        Args:
            source: the video.
        """
        self._finished[source.name] = source.content

    def flush(self) -> None:
        """Write the waiting samples as a shard, then enter them into the index, all at once.

        Raises:
            CheckpointError: if the shard cannot be written.
            DatasetError: if the index cannot be written. The samples keep waiting in both cases.
        """
        if not self._pending and not self._finished:
            return
        statements: list[tuple[str, list[tuple[object, ...]]]] = []
        size, digest = 0, self._digest
        if self._pending:
            name = f"shard-{self._number:05d}.safetensors"
            samples = self._pending.values()
            tensors = {key: torch.stack([sample[key] for sample in samples]) for key in self._shapes}
            write_safetensors(self._folder / name, tensors, {})
            size = (self._folder / name).stat().st_size
            digest = hashlib.sha256("\n".join([digest, str(size), *self._pending]).encode()).hexdigest()
            shard = (self._number, name, size, len(samples), self._bytes + size, digest)
            rows = [(self._count + row, key, self._number, row) for row, key in enumerate(self._pending)]
            statements = [
                ("INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?)", [shard]),
                ("INSERT INTO samples VALUES (?, ?, ?, ?)", list(rows)),
            ]
        finished = [(source, content.bytes, content.sha256) for source, content in self._finished.items()]
        statements.append(("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", list(finished)))
        with explained(self._folder), self._database:
            for statement, values in statements:
                self._database.executemany(statement, values)
        if self._pending:
            self._number, self._bytes, self._digest = self._number + 1, self._bytes + size, digest
        self._count += len(self._pending)
        self._pending, self._finished = {}, {}

"""Reading of latent datasets on demand; `dataset_index.py` and `parts.py` describe the formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.files import enough_memory
from magicdistill_core.safetensors_file import read_header

from .dataset_index import (
    IMAGE_FEATURES,
    IMAGE_LATENTS,
    LATENTS,
    DatasetError,
    Place,
    check_shards,
    check_size,
    damaged,
)
from .finite import not_finite
from .free_memory import free_bytes
from .index_file import read_index
from .text_states import TextStates

# A dataset up to this size is kept in memory once it is read, if the free memory is this many times larger: a machine
# may run 8 processes.
_HELD_BYTES = 4 * 1024**3
_HELD_SHARE = 16


class LatentBatch(NamedTuple):
    """A batch of samples in float32.

    Attributes:
        latents: clean latents `[B, 16, T, H, W]`.
        image_latents: latents of the start images, `[B, 16, 1, H, W]` (Wan 2.1: T frames).
    """

    latents: Tensor
    image_latents: Tensor


class LatentDataset:
    """Read access to a latent dataset by sample number. Tensors are read on demand.

    Attributes:
        folder: the dataset's folder.
        index: its index.
        texts: the prompts of its samples; None for a dataset without captions.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a dataset, and check that its shards are complete.

        The shards of a dataset in parts are checked when they are first read, because there can be very many.

        Args:
            folder: the dataset's folder.

        Raises:
            DatasetError: if the folder is not a dataset or has no samples, or if a shard is missing, truncated or of
                another geometry.
        """
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._count = self.index.count
        self._shapes = self.index.tensor_shapes()
        self._checked: set[str] = set()
        if not self._count:
            raise DatasetError(
                f"The dataset {self.folder} holds no samples. Run `magicdistill prepare` on usable clips."
            )
        check_shards(self.folder, self.index)
        for shard in self.index.shards:
            self._check(Place(shard.file, 0, "", shard.bytes, len(shard.samples)))
            if self.index.texts is not None and len(shard.prompts or []) != len(shard.samples):
                found = f"{len(shard.prompts or [])} captions for its {len(shard.samples)} samples"
                raise damaged(self.folder, shard.file, f"the index states {found}")
        # Files of small samples, such as pocket clips, would be opened some hundred times per update.
        self._is_held = self._bytes() <= min(_HELD_BYTES, free_bytes(torch.device("cpu")) // _HELD_SHARE)
        self._held: dict[tuple[str, str], Tensor] = {}
        self.texts = None
        if self.index.texts is not None:
            samples = [prompts for shard in self.index.shards for prompts in shard.prompts or []]
            self.texts = TextStates(self.folder, self.index.texts, samples)

    def _bytes(self) -> int:
        """Return the size of all samples in bytes."""
        values = sum(torch.Size(shape).numel() for shape in self._shapes.values())
        return len(self) * values * getattr(torch, self.index.dtype).itemsize

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
        return self._count

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
            DatasetError: if a shard can no longer be read, or a sample holds a NaN or an infinite value.
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
            place = self.index.place(index)
            if self._is_held:
                rows.append(self._shard(place, key)[place.row : place.row + 1])
            else:
                rows.append(self._read_rows(place, key, slice(place.row, place.row + 1)))
        batch = torch.cat(rows).float()
        # Any NaN or infinite value makes the sum NaN or infinite. A sum is cheap; finite values may overflow it.
        if not batch.sum().isfinite():
            for index, tensor in zip(indices, batch, strict=True):
                if found := not_finite(tensor):
                    raise self._not_finite(key, self.index.place(index), found)
        return batch

    def _shard(self, place: Place, key: str) -> Tensor:
        """Return a tensor of a shard that is kept in memory; it is read at the first use."""
        if (place.file, key) not in self._held:
            self._held[place.file, key] = self._read_rows(place, key, slice(None))
        return self._held[place.file, key]

    def _read_rows(self, place: Place, key: str, rows: slice) -> Tensor:
        path = self.folder / place.file
        if place.file not in self._checked:
            self._check(place)
        try:
            # Not kept open: all shards mapped at once may be more than the address space of a process.
            with enough_memory(path), safe_open(path, framework="pt") as file:
                read: Tensor = file.get_slice(key)[rows]
                return read
        except (SafetensorError, OSError, CheckpointError) as error:
            raise damaged(self.folder, place.file, cause(error.__cause__ or error)) from error

    def _not_finite(self, key: str, place: Place, found: str) -> DatasetError:
        return DatasetError(
            f"The sample {place.key} of {self.folder} is not usable: its {key} hold {found} (row {place.row} of "
            f"{place.file}). Nothing was trained on it. Prepare the dataset again into another folder: `magicdistill "
            f"prepare` leaves such samples out, and names them."
        )

    def _check(self, place: Place) -> None:
        check_size(self.folder, place.file, place.bytes)
        try:
            header = read_header(self.folder / place.file)
        except (CheckpointError, OSError) as error:
            raise damaged(self.folder, place.file, cause(error.__cause__ or error)) from error
        shapes = {key: header[key].shape for key in self._shapes if key in header}
        expected = {key: (place.samples, *shape) for key, shape in self._shapes.items()}
        if shapes != expected:
            raise damaged(self.folder, place.file, f"its tensors are {shapes}, but the index states {expected}")
        self._checked.add(place.file)

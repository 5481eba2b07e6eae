"""Reading of latent datasets on demand; `dataset_index.py` describes the format."""

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

from .dataset_index import IMAGE_FEATURES, IMAGE_LATENTS, LATENTS, DatasetError, check_shards, damaged, read_index
from .finite import not_finite
from .free_memory import free_bytes
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

        Args:
            folder: the dataset's folder.

        Raises:
            DatasetError: if the folder is not a dataset or has no samples, or if a shard is missing, truncated or of
                another geometry.
        """
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._places = [(s, row) for s, shard in enumerate(self.index.shards) for row in range(len(shard.samples))]
        self._shapes = self.index.tensor_shapes()
        if not self._places:
            raise DatasetError(
                f"The dataset {self.folder} holds no samples. Run `magicdistill prepare` on usable clips."
            )
        check_shards(self.folder, self.index)
        for number in range(len(self.index.shards)):
            self._check(number)
        # Files of small samples, such as pocket clips, would be opened some hundred times per update.
        self._is_held = self._bytes() <= min(_HELD_BYTES, free_bytes(torch.device("cpu")) // _HELD_SHARE)
        self._held: dict[tuple[int, str], Tensor] = {}
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
            number, row = self._places[index]
            if self._is_held:
                rows.append(self._shard(number, key)[row : row + 1])
            else:
                rows.append(self._read_rows(number, key, slice(row, row + 1)))
        batch = torch.cat(rows).float()
        # Any NaN or infinite value makes the sum NaN or infinite. A sum is cheap; finite values may overflow it.
        if not batch.sum().isfinite():
            for index, tensor in zip(indices, batch, strict=True):
                if found := not_finite(tensor):
                    raise self._not_finite(key, index, found)
        return batch

    def _shard(self, number: int, key: str) -> Tensor:
        """Return a tensor of a shard that is kept in memory; it is read at the first use."""
        if (number, key) not in self._held:
            self._held[number, key] = self._read_rows(number, key, slice(None))
        return self._held[number, key]

    def _read_rows(self, number: int, key: str, rows: slice) -> Tensor:
        path = self.folder / self.index.shards[number].file
        try:
            # Not kept open: all shards mapped at once may be more than the address space of a process.
            with enough_memory(path), safe_open(path, framework="pt") as file:
                read: Tensor = file.get_slice(key)[rows]
                return read
        except (SafetensorError, OSError, CheckpointError) as error:
            raise self._damaged(number, cause(error.__cause__ or error)) from error

    def _not_finite(self, key: str, index: int, found: str) -> DatasetError:
        number, row = self._places[index]
        shard = self.index.shards[number]
        return DatasetError(
            f"The sample {shard.samples[row]} of {self.folder} is not usable: its {key} hold {found} (row {row} of "
            f"{shard.file}). Nothing was trained on it. Prepare the dataset again into another folder: `magicdistill "
            f"prepare` leaves such samples out, and names them."
        )

    def _damaged(self, number: int, why: str) -> DatasetError:
        return damaged(self.folder, self.index.shards[number].file, why)

    def _check(self, number: int) -> None:
        shard = self.index.shards[number]
        try:
            header = read_header(self.folder / shard.file)
        except (CheckpointError, OSError) as error:
            raise self._damaged(number, cause(error.__cause__ or error)) from error
        shapes = {key: header[key].shape for key in self._shapes if key in header}
        expected = {key: (len(shard.samples), *shape) for key, shape in self._shapes.items()}
        if shapes != expected:
            raise self._damaged(number, f"its tensors are {shapes}, but the index states {expected}")
        if self.index.texts is not None and len(shard.prompts or []) != len(shard.samples):
            raise self._damaged(
                number, f"the index states {len(shard.prompts or [])} captions for its {len(shard.samples)} samples"
            )

"""Latent datasets: a folder with an index `dataset.json` and safetensors shards.

Writing can be interrupted and continued. Reading opens a shard for each row, so it needs no memory for the others.

A shard holds `latents` `[N, 16, T, H, W]` and `image_latents` `[N, 16, 1, H, W]` (the first frame encoded as a still
image), both in the network's scale. For Wan 2.1 `image_latents` are `[N, 16, T, H, W]` (the first frame and gray frames
encoded together), and `image_features` `[N, 257, 1280]` are the CLIP features of the first frame.

A dataset with captions also has files of text states (`text_index.py`), which its samples name by number.

The index names a new shard only after the shard is on disk. An interrupted preparation loses at most the samples of one
unfinished shard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from magicdistill_core.errors import MagicDistillError, cause
from magicdistill_core.families import all_families
from magicdistill_core.geometry import latent_shape

from .text_index import TEXT_PREFIX, SamplePrompts, TextFile, TextIndex

INDEX_NAME = "dataset.json"
LATENTS, IMAGE_LATENTS, IMAGE_FEATURES = "latents", "image_latents", "image_features"

# `dataset.json` lists all shards. Format 2 is a dataset in parts (`parts.py`).
FORMAT_VERSION = 1

StoredDtype = Literal["float16", "bfloat16", "float32"]


class DatasetError(MagicDistillError):
    """Raised when a latent dataset is missing, damaged, or made with other settings than the requested ones."""


class Content(BaseModel):
    """The contents of a source video: equal for a renamed copy, different for another video of the same name."""

    model_config = ConfigDict(frozen=True)

    bytes: int = Field(description="Size of the file in bytes.")
    sha256: str = Field(description="sha256 of the file, or of 16 parts of a large file (see `contents.py`).")


class Shard(BaseModel):
    """One shard, as the index describes it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file: str
    bytes: int = Field(description="Size of the file in bytes. It reveals a truncated copy at once.")
    samples: list[str] = Field(description="Keys of the samples, in the order of the rows.")
    prompts: list[SamplePrompts] | None = Field(
        None, description="Prompts of the samples, in the order of the rows. None in a dataset without captions."
    )


class Place(NamedTuple):
    """Where a sample is stored.

    Attributes:
        file: its shard, relative to the dataset's folder.
        row: its row in the shard.
        key: its key.
        bytes: size of the shard.
        samples: number of samples in the shard.
    """

    file: str
    row: int
    key: str
    bytes: int
    samples: int


class DatasetIndex(BaseModel):
    """The contents of `dataset.json`. Fields that a newer version added are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format_version: int = FORMAT_VERSION
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
    rules_sha256: str | None = Field(
        None, description="sha256 of the rules that chose the shots. None for all windows of all videos."
    )
    shards: list[Shard] = []
    sources: list[str] = Field(default=[], description="Source videos whose samples are all in the dataset.")
    contents: dict[str, Content] = Field(
        default={},
        description="Contents of the source videos, by the name that their samples begin with. Datasets of earlier "
        "versions have none.",
    )
    texts: TextIndex | None = Field(None, description="Text states of the captions. None in a dataset without them.")

    def stored(self) -> str:
        """Return the text of `dataset.json`. Earlier versions can read a dataset without captions."""
        absent: dict[str, Any] = {
            name: True for name in ("contents", "texts", "rules_sha256") if not getattr(self, name)
        }
        if self.texts is None:
            absent["shards"] = {"__all__": {"prompts"}}
        return self.model_dump_json(indent=1, exclude=absent)

    @property
    def count(self) -> int:
        """Number of samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def videos(self) -> list[str]:
        """Names of the videos whose samples are all in the dataset."""
        return self.sources

    def keys(self) -> Iterator[str]:
        """Yield the keys of the samples in the order of their numbers."""
        return (key for shard in self.shards for key in shard.samples)

    def place(self, number: int) -> Place:
        """Return where a sample is stored.

        Args:
            number: its number, from 0.

        Raises:
            IndexError: if there is no such sample.
        """
        row = number
        for shard in self.shards:
            if row < len(shard.samples):
                return Place(shard.file, row, shard.samples[row], shard.bytes, len(shard.samples))
            row -= len(shard.samples)
        raise IndexError(number)

    def shard_facts(self) -> list[list[Any]]:
        """Return what identifies the samples and their order."""
        return [[shard.bytes, *shard.samples] for shard in self.shards]

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


def check_shards(folder: Path, index: DatasetIndex) -> None:
    """Check that all shards and files of text states exist and have the size that was written.

    Args:
        folder: the dataset's folder.
        index: its index.

    Raises:
        DatasetError: if a file is missing or truncated.
    """
    files: list[Shard | TextFile] = [*index.shards, *(index.texts.files if index.texts is not None else [])]
    for file in files:
        check_size(folder, file.file, file.bytes)


def check_size(folder: Path, file: str, expected: int) -> None:
    """Check that a file of a dataset exists and has the size that was written.

    Args:
        folder: the dataset's folder.
        file: the file's name.
        expected: the size in bytes.

    Raises:
        DatasetError: if the file is missing or truncated.
    """
    try:
        size = (folder / file).stat().st_size
    except FileNotFoundError:
        raise damaged(folder, file, "the file is missing") from None
    except OSError as error:
        raise damaged(folder, file, cause(error)) from error
    if size != expected:
        state = "truncated, or its copy has not finished" if size < expected else "another file"
        raise damaged(folder, file, f"it has {size:,} bytes, but {expected:,} were written, so it is {state}")


def damaged(folder: Path, file: str, why: str) -> DatasetError:
    """Return the error of a shard or of a file of text states that cannot be used.

    Args:
        folder: the dataset's folder.
        file: the file's name.
        why: what was found, as a part of a sentence.
    """
    kind = "File" if file.startswith(TEXT_PREFIX) else "Shard"
    return DatasetError(
        f"{kind} {file} of {folder} cannot be used: {why}. Copy it again from its original, or delete the folder and "
        f"prepare the dataset again."
    )

"""Latent datasets: a folder with an index `dataset.json` and safetensors shards.

Writing can be interrupted and continued. Reading opens a shard for each row, so it needs no memory for the others.

A shard holds `latents` `[N, 16, T, H, W]` and `image_latents` `[N, 16, 1, H, W]` (the first frame encoded as a still
image), both in the network's scale. For Wan 2.1 `image_latents` are `[N, 16, T, H, W]` (the first frame and gray frames
encoded together), and `image_features` `[N, 257, 1280]` are the CLIP features of the first frame.

A dataset with captions also has files of text states (`text_index.py`), which its samples name by number.

The index names a new shard only after the shard is on disk. An interrupted preparation loses at most the samples of one
unfinished shard.
"""

import codecs
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magicdistill_core.errors import MagicDistillError, cause
from magicdistill_core.families import all_families
from magicdistill_core.geometry import latent_shape

from ..console import command
from .text_index import TEXT_PREFIX, SamplePrompts, TextFile, TextIndex

INDEX_NAME = "dataset.json"
LATENTS, IMAGE_LATENTS, IMAGE_FEATURES = "latents", "image_latents", "image_features"

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
        absent: dict[str, Any] = {name: True for name in ("contents", "texts") if not getattr(self, name)}
        if self.texts is None:
            absent["shards"] = {"__all__": {"prompts"}}
        return self.model_dump_json(indent=1, exclude=absent)

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
            f"`{command('prepare', '--videos', 'DIR', '--out', folder)}`, or correct the path."
        )
    try:
        index = DatasetIndex.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (ValidationError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read ({_reason(error)}). Expected the index that `magicdistill prepare` writes. Restore "
            f"the file, or prepare the dataset again."
        ) from error
    if index.format_version > FORMAT_VERSION:
        raise DatasetError(
            f"{path} has the format {index.format_version}, and this version reads format {FORMAT_VERSION}. Update "
            f"this project."
        )
    return index


def _reason(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return cause(error)
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


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
        try:
            size = (folder / file.file).stat().st_size
        except FileNotFoundError:
            raise damaged(folder, file.file, "the file is missing") from None
        except OSError as error:
            raise damaged(folder, file.file, cause(error)) from error
        if size != file.bytes:
            state = "truncated, or its copy has not finished" if size < file.bytes else "another file"
            why = f"it has {size:,} bytes, but {file.bytes:,} were written, so it is {state}"
            raise damaged(folder, file.file, why)


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

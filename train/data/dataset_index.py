"""Latent datasets: a folder with an index `dataset.json` and safetensors shards.

Writing can be interrupted and continued. Reading uses memory maps.

A shard holds `latents` `[N, 16, T, H, W]` and `image_latents` `[N, 16, 1, H, W]` (the first frame encoded as a still
image), both in the network's scale. For Wan 2.1 `image_latents` are `[N, 16, T, H, W]` (the first frame and gray frames
encoded together), and `image_features` `[N, 257, 1280]` are the CLIP features of the first frame.

The index names a new shard only after the shard is on disk. An interrupted preparation loses at most the samples of one
unfinished shard.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families import all_families
from magicdistill_core.geometry import latent_shape

from ..console import command

INDEX_NAME = "dataset.json"
LATENTS, IMAGE_LATENTS, IMAGE_FEATURES = "latents", "image_latents", "image_features"

StoredDtype = Literal["float16", "bfloat16", "float32"]


class DatasetError(MagicDistillError):
    """Raised when a latent dataset is missing, damaged, or made with other settings than the requested ones."""


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
            f"`{command('prepare', '--videos', 'DIR', '--out', folder)}`, or correct the path."
        )
    try:
        return DatasetIndex.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}). Expected the index that `magicdistill prepare` writes. Restore the "
            f"file, or prepare the dataset again."
        ) from error

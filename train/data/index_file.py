"""Reading of `dataset.json`, in both formats."""

import codecs
from pathlib import Path

from pydantic import ValidationError

from magicdistill_core.errors import cause

from ..console import command
from .dataset_index import INDEX_NAME, DatasetError, DatasetIndex
from .parts import PARTS_VERSION, PartedIndex


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
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        index = DatasetIndex.model_validate_json(text)
    except (ValidationError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read ({_reason(error)}). Expected the index that `magicdistill prepare` writes. Restore "
            f"the file, or prepare the dataset again."
        ) from error
    if index.format_version > PARTS_VERSION:
        raise DatasetError(
            f"{path} has the format {index.format_version}, and this version reads formats up to {PARTS_VERSION}. "
            f"Update this project."
        )
    if index.format_version < PARTS_VERSION:
        return index
    parted = PartedIndex.model_validate_json(text)
    parted.open_parts(folder)
    return parted


def _reason(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return cause(error)
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))

"""Find the pictures of a folder that are most similar to a text or to a picture (Magic 1-For-1, Eq. 2).

A network turns pictures into *embeddings*, vectors whose cosine is their similarity. The embeddings of a folder are
kept in one file. Only new and changed pictures are embedded again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import CheckpointError, VideoError
from .media.video import read_image
from .safetensors_file import read_tensors, write_safetensors

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
# A list of pictures `[H, W, 3]` in uint8 to embeddings `[N, D]`.
EmbedPictures = Callable[[Sequence[Tensor]], Tensor]
_EMBEDDINGS, _INDEX, _NETWORK = "embeddings", "pictures", "network"
_BATCH = 16


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder with their embeddings.

    Attributes:
        paths: the pictures that can be read, sorted by name.
        embeddings: their embeddings of length 1, `[N, D]` in float32.
        added: how many were embedded now; the others are from the file.
        unreadable: names of the pictures that cannot be read.
    """

    paths: list[Path]
    embeddings: Tensor
    added: int
    unreadable: list[str]


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted by name.

    Args:
        folder: the folder.

    Raises:
        VideoError: if there is no such folder, or it holds no pictures.
    """
    if not folder.is_dir():
        raise VideoError(f"There is no folder {folder}. Check its name.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise VideoError(f"The folder {folder} holds no pictures. Expected files such as .png, .jpg or .webp.")
    return found


def embed_folder(
    folder: Path,
    cache: Path,
    network: str,
    embed: EmbedPictures,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Pictures:
    """Return the embeddings of all pictures in a folder.

    A picture is new or changed if its name, its size in bytes or its time of change is. What is embedded is written
    into the file after every batch, so a stopped run goes on.

    Args:
        folder: the folder.
        cache: the file of the embeddings; it is written if something is new.
        network: what identifies the network. Embeddings of another network are not used.
        embed: the network.
        advance: called with (done, total) while pictures are embedded.

    Raises:
        VideoError: if there is no such folder, it holds no pictures, or none of them can be read.
    """
    paths = list_pictures(folder)
    known = _read(cache, network)
    marks = {path: _mark(folder, path) for path in paths}
    rows = {path: known[mark] for path, mark in marks.items() if mark in known}
    missing = [path for path in paths if path not in rows]
    unreadable: list[str] = []
    added = 0
    for start in range(0, len(missing), _BATCH):
        batch, pictures = [], []
        for path in missing[start : start + _BATCH]:
            try:
                pictures.append(read_image(path))
                batch.append(path)
            except VideoError:
                unreadable.append(path.relative_to(folder).as_posix())
        if batch:
            made = F.normalize(embed(pictures).float().cpu(), dim=1)
            rows |= dict(zip(batch, made, strict=True))
            added += len(batch)
        advance(min(len(missing), start + _BATCH), len(missing))
        # Writing takes long for many pictures, so not every batch is written.
        if batch and (start // _BATCH % 16 == 15 or start + _BATCH >= len(missing)):
            _write(cache, network, {marks[path]: row for path, row in rows.items()})
    if not rows:
        raise VideoError(f"No picture in {folder} can be read, such as {unreadable[0]}. Check the files.")
    found = [path for path in paths if path in rows]
    return Pictures(found, torch.stack([rows[path] for path in found]), added, unreadable)


def nearest(pictures: Pictures, query: Tensor, count: int) -> list[tuple[Path, float]]:
    """Return the pictures most similar to a query, the best one first, with their cosines.

    Args:
        pictures: the pictures.
        query: the embedding `[D]` of a text or a picture.
        count: how many; fewer if there are fewer.

    Raises:
        VideoError: if the query has another width than the embeddings.
    """
    width = pictures.embeddings.shape[1]
    if query.shape != (width,):
        raise VideoError(
            f"The text has embeddings of width {query.numel()}, the pictures of width {width}. Use a text encoder and "
            f"a CLIP vision model of one CLIP: clip_l and clip-vit-large-patch14."
        )
    scores = pictures.embeddings @ F.normalize(query.float().cpu(), dim=0)
    best = torch.topk(scores, min(count, len(scores)))
    return [
        (pictures.paths[place], score) for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _mark(folder: Path, path: Path) -> str:
    """Return what changes whenever a picture does."""
    stat = path.stat()
    return json.dumps([path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns])


def _read(cache: Path, network: str) -> dict[str, Tensor]:
    """Return the kept embeddings by mark; none if there is no usable file of this network."""
    if not cache.is_file():
        return {}
    try:
        tensors, metadata = read_tensors(cache)
        marks = json.loads(metadata[_INDEX])
        embeddings = tensors[_EMBEDDINGS]
    except (CheckpointError, KeyError, ValueError):
        return {}
    if metadata.get(_NETWORK) != network or len(marks) != len(embeddings):
        return {}
    return dict(zip(marks, embeddings, strict=True))


def _write(cache: Path, network: str, rows: dict[str, Tensor]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_INDEX: json.dumps(list(rows)), _NETWORK: network}
    write_safetensors(cache, {_EMBEDDINGS: torch.stack(list(rows.values()))}, metadata)

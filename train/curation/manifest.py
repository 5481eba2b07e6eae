"""The manifest of a scan: a folder of Parquet files with a row for each shot, and one for what could not be read.

A scan adds files and never changes one. After it was killed, it goes on with the videos that no file names. If several
files name a video, the newest one counts: the video has changed in between.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicdistill_core.errors import cause
from magicdistill_core.files import atomic_file, write_text

from ..data.dataset_index import Content
from .packages import CurationError, require

if TYPE_CHECKING:
    import pyarrow

FORMAT_VERSION = 1
_HEADER, _PART = "scan.json", "part-{:05d}.parquet"
Row = dict[str, Any]
"""A row by the names of its columns."""

_IDENTITY = {"video": "string", "bytes": "int64", "sha256": "string", "shot": "int32", "error": "string"}
_FACTS = {
    **{"width": "int32", "height": "int32", "fps": "float64", "codec": "string", "rotation": "int32", "hdr": "bool"},
    **{"uneven": "float64", "sound": "bool", "loudness": "float64", "notes": "string"},
}
_PLACE = {
    **{"first": "int64", "last": "int64", "start": "float64", "end": "float64", "seconds": "float64"},
    "begins": "string",
}
_FACE = {
    **{"face_share": "float64", "faces": "float64", "face_height": "float64", "face_pixels": "float64"},
    **{"face_x": "float64", "face_y": "float64", "same_face": "float64", "face_motion": "float64"},
}
_PICTURE = {
    **{"camera_motion": "float64", "sharpness": "float64", "brightness": "float64", "dark": "float64"},
    **{"bright": "float64", "joined": "float64", "text": "float64", "bars": "float64"},
    **{"left": "float64", "top": "float64", "right": "float64", "bottom": "float64"},
}
_COLUMNS = _IDENTITY | _FACTS | _PLACE | _FACE | _PICTURE


def _schema() -> "pyarrow.Schema":
    import pyarrow

    kinds = {"bool": pyarrow.bool_(), "string": pyarrow.string()}
    sample = pyarrow.struct(
        {
            **{"frame": pyarrow.int64(), "time": pyarrow.float64()},
            **{side: pyarrow.float32() for side in ("x", "y", "width", "height")},
        }
    )
    lists = {
        "hashes": pyarrow.list_(pyarrow.uint64()),
        "samples": pyarrow.list_(sample),
        "thumbnails": pyarrow.list_(pyarrow.binary()),
    }
    columns = {name: kinds.get(kind) or getattr(pyarrow, kind)() for name, kind in _COLUMNS.items()}
    return pyarrow.schema(columns | lists)


@dataclass(frozen=True)
class Manifest:
    """The rows of a scan, in the order of videos and shots.

    Attributes:
        folder: the manifest's folder.
        videos: the folder of the videos.
        rows: all columns except the pictures and the samples.
    """

    folder: Path
    videos: Path
    rows: list[Row]

    def thumbnails(self, wanted: Sequence[Row]) -> list[list[bytes]]:
        """Read the pictures of some rows, as JPEG.

        Args:
            wanted: rows of this manifest.
        """
        return self._lists("thumbnails", wanted)

    def samples(self, wanted: Sequence[Row]) -> list[list[Row]]:
        """Read the places of the face in the samples of some rows.

        Args:
            wanted: rows of this manifest.
        """
        return self._lists("samples", wanted)

    def _lists(self, column: str, wanted: Sequence[Row]) -> list[list[Any]]:
        """Read a column that is too large to be read for all rows."""
        import pyarrow.parquet

        places: dict[str, list[tuple[int, int]]] = {}
        for place, row in enumerate(wanted):
            places.setdefault(row["part"], []).append((row["place"], place))
        found: list[list[Any]] = [[] for _ in wanted]
        for part, pairs in places.items():
            values = pyarrow.parquet.read_table(self.folder / part, columns=[column]).column(column)
            for at, place in pairs:
                found[place] = values[at].as_py() or []
        return found


class ManifestWriter:
    """Adds parts to a manifest. The caller holds the folder's lock."""

    def __init__(self, folder: Path, videos: Path, settings: Mapping[str, str | float]) -> None:
        """Open a folder, which need not exist yet.

        Args:
            folder: the manifest's folder.
            videos: the folder of the videos.
            settings: what the measures depend on.

        Raises:
            CurationError: if the folder holds the scan of another folder or with other settings, or is damaged.
        """
        require("pyarrow")
        self._folder = folder
        wanted = {"format_version": FORMAT_VERSION, "videos": str(videos.resolve()), **settings}
        if (folder / _HEADER).exists():
            found = _header(folder)
            differing = [
                f"{name} {found.get(name)} (now: {wanted[name]})" for name in wanted if found.get(name) != wanted[name]
            ]
            if differing:
                raise CurationError(
                    f"{folder} holds a scan with other settings: {', '.join(differing)}. Continue it with the same "
                    f"settings, or write to another folder."
                )
        else:
            write_text(folder / _HEADER, json.dumps(wanted, indent=1) + "\n")
        for unfinished in folder.glob(".part-*.tmp"):  # left by a killed process
            unfinished.unlink(missing_ok=True)
        self.known: dict[str, Content] = {}
        for part in _parts(folder):
            for row in _read(folder, part, ["video", "bytes", "sha256"]):
                self.known[row["video"]] = Content(bytes=row["bytes"], sha256=row["sha256"])

    def add(self, rows: Sequence[Row]) -> None:
        """Write the rows of complete videos as one more part.

        Args:
            rows: rows with all columns; those that are absent are null.
        """
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(list(rows), schema=_schema())
        number = 1 + max((int(part[5:-8]) for part in _parts(self._folder)), default=-1)
        with atomic_file(self._folder / _PART.format(number)) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        for row in rows:
            self.known[row["video"]] = Content(bytes=row["bytes"], sha256=row["sha256"])


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest.

    Args:
        folder: its folder.

    Raises:
        CurationError: if it is none, has no rows, or a part is damaged.
    """
    require("pyarrow")
    header = _header(folder)
    newest: dict[str, list[Row]] = {}
    columns = [*_COLUMNS, "hashes"]
    for part in _parts(folder):
        of_part: dict[str, list[Row]] = {}
        for place, row in enumerate(_read(folder, part, columns)):
            of_part.setdefault(row["video"], []).append(row | {"part": part, "place": place})
        newest |= of_part
    if not newest:
        raise CurationError(f"The manifest {folder} has no rows yet. Start `magicdistill data scan` again.")
    return Manifest(
        folder, Path(header["videos"]), [row for name in sorted(newest) for row in sorted(newest[name], key=_shot)]
    )


def _shot(row: Row) -> int:
    return int(row["shot"])


def _parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*.parquet"))


def _header(folder: Path) -> Row:
    path = folder / _HEADER
    if not path.is_file():
        raise CurationError(
            f"{folder} is no manifest: it has no {_HEADER}. Make one with `magicdistill data scan`, or correct the "
            f"path."
        )
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, _ = int(header["format_version"]), str(header["videos"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CurationError(f"{path} cannot be read ({cause(error)}). Delete {folder} and scan again.") from error
    if version > FORMAT_VERSION:
        raise CurationError(
            f"{path} has the format {version}, and this version reads format {FORMAT_VERSION}. Update this project."
        )
    return header


def _read(folder: Path, part: str, columns: list[str]) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(folder / part, columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise CurationError(
            f"{folder / part} cannot be read ({cause(error)}). Delete this file, and start the scan again: it looks "
            f"again at the videos of this file."
        ) from error
    return rows

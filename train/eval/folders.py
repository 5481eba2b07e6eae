"""The folders of videos, and which start image and which reference belong to a video."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from magicdistill_core.errors import ConfigError

from ..data.videos import find_videos

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
# VBench and other tools append the number of a sample: NAME-0.mp4, NAME_003.mp4.
_SAMPLE = re.compile(r"[-_ ]\d{1,4}$")
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class Item:
    """A video to score.

    Attributes:
        name: its name relative to its folder, such as `anna-0.mp4`.
        path: its path.
        image: its start image; None if there is none.
        reference: the reference video of the same name; None if there is none.
    """

    name: str
    path: Path
    image: Path | None = None
    reference: Path | None = None

    @property
    def start(self) -> str:
        """What it shares with other videos that belong to it: the path of its start image, or its own name."""
        return str((Path(self.name) if self.image is None else self.image).with_suffix(""))


@dataclass(frozen=True)
class System:
    """A folder of videos that one model made.

    Attributes:
        name: its name in tables.
        folder: the folder.
        items: its videos.
        warnings: sentences about videos without a start image or a reference.
    """

    name: str
    folder: Path
    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()


def parse_systems(generated: list[str]) -> dict[str, Path]:
    """Return folders by name from `DIR` and `NAME=DIR`.

    Raises:
        ConfigError: if there is none, or two have one name.
    """
    systems: dict[str, Path] = {}
    for text in generated:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text).expanduser()
        name = name if equals else (path.resolve().name or str(path))
        if not name or name in systems:
            raise ConfigError(
                f"Two folders of --generated are called {name!r}. Give each a name of its own: --generated NAME=DIR."
            )
        systems[name] = path
    if not systems:
        raise ConfigError("No folder of videos. Expected --generated DIR, or --generated NAME=DIR several times.")
    return systems


def read_systems(generated: Mapping[str, Path], images: Path | None, reference: Path | None) -> list[System]:
    """Find the videos of each folder, their start images and their references.

    A start image belongs to a video if its name without the suffix is that of the video, or that of the video without
    the number of a sample at its end. A table states it instead. A reference belongs to a video in the same way.

    Args:
        generated: folders by name.
        images: a folder of start images, or a table (.csv) with the columns `video` and `image`, and `reference` if
            wanted; None for no start images.
        reference: a folder of reference videos; None for none.

    Raises:
        ConfigError: if the table or the folder of images is unusable.
        VideoError: if a folder holds no video.
    """
    table = None if images is None or images.is_dir() else _read_table(images)
    stills = _by_stem(_images(images)) if images is not None and table is None else {}
    references = {} if reference is None else _by_stem(find_videos(reference))
    systems = []
    for name, folder in generated.items():
        items = []
        for video, path in find_videos(folder).items():
            row = None if table is None else table.get(video)
            still = _match(video, stills) if row is None else row[0]
            real = row[1] if row is not None and row[1] is not None else _match(video, references)
            items.append(Item(video, path, still, real))
        warnings = []
        for kind, wanted, missing in (
            ("start image", images is not None, [item.name for item in items if item.image is None]),
            ("reference", reference is not None, [item.name for item in items if item.reference is None]),
        ):
            if wanted and missing:
                warnings.append(_no_match(name, kind, missing, len(items)))
        systems.append(System(name, folder, tuple(items), tuple(warnings)))
    return systems


def _no_match(system: str, kind: str, missing: list[str], count: int) -> str:
    more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
    return (
        f"{system}: no {kind} matches {len(missing)} of {count} videos ({', '.join(missing[:_SHOWN_NAMES])}{more}). "
        f"Measures that need it leave them out."
    )


def _images(folder: Path) -> dict[str, Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise ConfigError(
            f"The folder {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Check the path of --images."
        )
    return {path.relative_to(folder).as_posix(): path for path in found}


def _by_stem(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {str(Path(name).with_suffix("")): path for name, path in paths.items()}


def _match(video: str, stills: Mapping[str, Path]) -> Path | None:
    stem = str(Path(video).with_suffix(""))
    return stills.get(stem) or stills.get(_SAMPLE.sub("", stem))


def _read_table(path: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return image and reference by the video's name."""
    if not path.is_file():
        raise ConfigError(f"--images {path} does not exist. Expected a folder of images, or a .csv table.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"The table {path} cannot be read ({error}). Expected a .csv file in UTF-8.") from error
    if not rows or not {"video", "image"} <= rows[0].keys():
        raise ConfigError(f"The table {path} needs the columns video and image, and at least one row.")
    table: dict[str, tuple[Path, Path | None]] = {}
    for number, row in enumerate(rows, start=2):
        if not row["video"] or not row["image"]:
            raise ConfigError(f"Line {number} of {path} has no {'image' if row['video'] else 'video'}.")
        real = row.get("reference")
        table[row["video"]] = (path.parent / row["image"], path.parent / real if real else None)
    missing = [image for image, _ in table.values() if not image.is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} images of the table {path} do not exist, the first one is {missing[0]}. Paths are "
            f"relative to the table's folder."
        )
    return table

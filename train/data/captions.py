"""Captions of videos: text files next to them, or a table of all of them."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from magicdistill_core.errors import MagicDistillError, cause

VIDEO, CAPTION = "video", "caption"
_SUFFIXES = (".jsonl", ".csv", ".parquet")


class CaptionError(MagicDistillError):
    """Raised when captions cannot be read, or do not match the videos."""


def find_captions(videos: Mapping[str, Path], table: Path | None = None) -> dict[str, str] | None:
    """Return the caption of each video, by the video's name; None if no video has one.

    Without a table, the caption of `NAME.mp4` is the text of `NAME.txt` in the same folder.

    Args:
        videos: the paths of the videos by name, from `find_videos`.
        table: a table with the columns `video` and `caption`: JSON lines (`.jsonl`), CSV with a header, or Parquet. A
            video is named as in `videos`, or by its absolute path. None looks for text files.

    Raises:
        CaptionError: if a caption cannot be read, a video has none although others have, or the table names a video
            that does not exist or names one twice.
    """
    found = _text_files(videos) if table is None else _matched(videos, table)
    if not found and table is None:
        return None
    if missing := [name for name in videos if name not in found]:
        where = "no text file next to them" if table is None else f"no row in {table}"
        raise CaptionError(
            f"{len(missing)} of {len(videos)} videos have {where}: {_listing(missing)}. Every video needs a caption. "
            f"Add them; an empty caption is allowed."
        )
    return found


def _text_files(videos: Mapping[str, Path]) -> dict[str, str]:
    found = {}
    for name, path in videos.items():
        file = path.with_suffix(".txt")
        if file.is_file():
            try:
                found[name] = file.read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeError) as error:
                raise CaptionError(
                    f"The caption {file} cannot be read ({cause(error)}). Expected a text in UTF-8."
                ) from error
    return found


def _matched(videos: Mapping[str, Path], table: Path) -> dict[str, str]:
    # Absolute paths in a table may go through links to folders, or to where these lead.
    names = {str(path.resolve()): name for name, path in videos.items()}
    names |= {os.path.abspath(path): name for name, path in videos.items()}
    found: dict[str, str] = {}
    unknown: list[str] = []
    for place, row in _rows(table):
        texts = [row.get(column) for column in (VIDEO, CAPTION)]
        if not all(isinstance(text, str) for text in texts):
            raise CaptionError(
                f"{place} of {table} has the columns {', '.join(map(str, row)) or 'none'}, with {VIDEO} "
                f"{texts[0]!r:.40} and {CAPTION} {texts[1]!r:.40}. Expected the columns {VIDEO} and {CAPTION}, with a "
                f"text in each."
            )
        given, caption = map(str, texts)
        normal = os.path.normpath(given)
        name = names.get(normal, normal)
        if name not in videos:
            unknown.append(given)
        elif name in found:
            raise CaptionError(f"{place} of {table} names {given}, which an earlier row names too. Remove one of them.")
        else:
            found[name] = caption.strip()
    if unknown:
        raise CaptionError(
            f"{table} names {len(unknown)} videos that are not in the folder of videos: {_listing(unknown)}. Expected "
            f"paths relative to that folder, such as {next(iter(videos))}, or absolute paths. Correct or remove these "
            f"rows."
        )
    return found


def _rows(table: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the rows of a table, each with its place for messages."""
    suffix = table.suffix.lower()
    if suffix not in _SUFFIXES:
        raise CaptionError(
            f"The table of captions is {table}. Expected a file whose name ends in {', '.join(_SUFFIXES)}."
        )
    if not table.is_file():
        raise CaptionError(f"The table of captions {table} does not exist. Check the path.")
    try:
        yield from {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[suffix](table)
    except CaptionError:
        raise
    except Exception as error:  # Parquet's reader has errors of its own.
        raise CaptionError(f"The table of captions {table} cannot be read ({cause(error)}).") from error


def _json_rows(table: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    with open(table, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CaptionError(f"Line {number} of {table} is no JSON ({error}). Correct it.") from error
            if not isinstance(row, dict):
                raise CaptionError(
                    f"Line {number} of {table} is {line.strip():.40}, expected an object such as "
                    f'{{"{VIDEO}": "clip.mp4", "{CAPTION}": "a text"}}.'
                )
            yield f"Line {number}", row


def _csv_rows(table: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            # A row of more cells than the header has the rest under None.
            yield f"Line {reader.line_num}", {key: value for key, value in row.items() if key is not None}


def _parquet_rows(table: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    if find_spec("pyarrow") is None:
        raise CaptionError(
            f"{table} is a Parquet file, and pyarrow is not installed, which reads it. Install it with `pip install "
            f"pyarrow`, or save the table as CSV or JSON lines."
        )
    import pyarrow.parquet

    for number, row in enumerate(pyarrow.parquet.read_table(table).to_pylist(), 1):
        yield f"Row {number}", row


def _listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

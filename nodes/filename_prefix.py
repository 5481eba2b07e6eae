"""The name of a saved file: the codes in it, and what no file name may contain.

ComfyUI's page replaces `%date:...%` and `%Node.widget%` before it sends a prompt (`web/filename_prefix.js`). In a
prompt from elsewhere, dates are replaced here. The server itself replaces `%width%`, `%height%` and `%year%` to
`%second%`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..magicdistill_core.errors import VideoError

_SHOWN = 100
# File systems allow 255 bytes per name; the number, the suffix and the name of an unfinished file need some of them.
_PART_BYTES, _PREFIX_BYTES = 200, 1000
_CODE = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"%date:([^%]*)%")
_DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_RESERVED = re.compile(r"(?i)(?<![^/])(con|prn|aux|nul|com\d|lpt\d)(?=[./]|$)")


def _check(prefix: str) -> None:
    """Refuse names outside the output folder and names that are too long, before a folder is created.

    Raises:
        VideoError: if it is one of these.
    """
    paths = (PurePosixPath(prefix), PureWindowsPath(prefix))
    named = bool(prefix.strip() and paths[0].parts) and prefix.isprintable()
    if not named or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise VideoError(
            f"The filename prefix {shortened(prefix)!r} does not stay inside ComfyUI's output folder. Use a name or a "
            f"path below that folder, such as video/portrait."
        )
    longest = max((len(part.encode()) for part in paths[1].parts), default=0)
    if longest > _PART_BYTES or len(prefix.encode()) > _PREFIX_BYTES:
        raise VideoError(
            f"The filename prefix {shortened(prefix)!r} is too long: it has {len(prefix.encode())} bytes, and its "
            f"longest name has {longest}. Expected at most {_PREFIX_BYTES} bytes, and {_PART_BYTES} for each name. "
            f"Shorten it."
        )


def unreplaced_codes(prefix: str) -> list[str]:
    """Return the codes `%Node.widget%` in a prefix, which only ComfyUI's page can replace."""
    codes = (match for match in _CODE.finditer(_DATE.sub("", prefix)))
    return [match[0] for match in codes if len([part for part in match[1].split(".") if part]) == 2]


def check_codes(prefix: str) -> None:
    """Refuse codes that nobody has replaced, before anything is sampled.

    Raises:
        VideoError: if the prefix contains `%Node.widget%`.
    """
    codes = unreplaced_codes(prefix)
    if codes:
        raise VideoError(
            f"The filename prefix contains {codes[0]}, which stands for the value of a widget. ComfyUI's page found no "
            f"such widget, or the prompt does not come from the page, which alone can replace it. Expected "
            f"%node.widget%, such as %MagicDistillSampler.seed%. Correct it, or write the "
            f"value itself."
        )


def portable_prefix(prefix: str, now: datetime) -> tuple[str, list[str]]:
    """Replace dates in a prefix, and what Windows does not allow in names. The result is the same on every system.

    Args:
        prefix: the prefix.
        now: the time for `%date:...%`.

    Returns:
        The prefix with `/` between folders, and notes for the user.

    Raises:
        VideoError: if the prefix is empty, absolute on any system, too long, contains `..`, or has unprintable
            characters.
    """
    _check(prefix)
    dated = _DATE.sub(lambda match: _FORBIDDEN.sub("_", _format_date(match[1], now)), prefix).replace("\\", "/")
    notes = [f"{code} was not replaced: only ComfyUI's page can do that." for code in unreplaced_codes(prefix)]
    replaced = sorted(set(_FORBIDDEN.findall(dated)))
    if replaced:
        notes.append(f"a file name on Windows cannot contain {' '.join(replaced)}: saved with _ instead.")
    portable = _RESERVED.sub(r"\1_", _FORBIDDEN.sub("_", dated))
    _check(portable)
    return portable, notes


def shortened(prefix: str) -> str:
    """Return a prefix, or its beginning if it is long."""
    return prefix if len(prefix) <= _SHOWN else f"{prefix[:_SHOWN]}..."


def _format_date(form: str, now: datetime) -> str:
    """Format a date as ComfyUI's page does: `yyyy-MM-dd hh:mm:ss`, where one letter leaves out a leading zero."""
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        code = match[0]
        if code[0] == "y":
            return {"yy": f"{now.year:04}"[2:], "yyyy": f"{now.year:04}"}.get(code, code)
        return f"{numbers[code[0]]:0{len(code)}}"

    return _DATE_PART.sub(part, form)


@contextmanager
def free_file(folder: Path, name: str, number: int, suffix: str) -> Iterator[Path]:
    """Take the first file name that is free, so that no other process takes it too.

    Two ComfyUIs may share an output folder. The name is taken by an empty file, which the block replaces. If the block
    raises, the empty file is removed.

    Args:
        folder: the folder of the file.
        name: the name before the number.
        number: the first number to try.
        suffix: the suffix of the file, with its point.

    Yields:
        The path `NAME_00001_.SUFFIX`.
    """
    while True:
        path = folder / f"{name}_{number:05}_{suffix}"
        try:
            path.open("xb").close()
            break
        except FileExistsError:
            number += 1
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise

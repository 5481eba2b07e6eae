"""Text tags of WebP images: an Exif chunk with one string `name:value` per tag, which ComfyUI can read."""

import struct
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import VideoError

_EXIF_FLAG, _ALPHA_FLAG = 0x08, 0x10
_CHUNK_HEADER = 8
_ASCII = 2  # the type code of strings in Exif
# The tags get consecutive numbers up to this one: ..., ImageDescription, Make, Model. In Exif these fields hold text.
_LAST_ENTRY = 0x0110
_RIFF_HEADER = 12


def write_webp_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Add tags to an existing WebP file that has none; the file is rewritten in place.

    Args:
        path: the file.
        tags: text by name; a name must not contain a colon.
    """
    content = path.read_bytes()
    body = content[_RIFF_HEADER:]
    if body[:4] != b"VP8X":
        # A still image can have the short form, which has no place for an Exif chunk. Convert it to the extended form.
        with Image.open(path) as image:
            width, height = image.size
            flags = _ALPHA_FLAG if image.mode == "RGBA" else 0
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = _chunk(b"VP8X", struct.pack("<I", flags) + canvas) + body
    extended = bytearray(body + _chunk(b"EXIF", _directory(tags)))
    extended[_CHUNK_HEADER] |= _EXIF_FLAG
    path.write_bytes(b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + bytes(extended))


def read_webp_tags(path: Path) -> dict[str, str]:
    """Read the tags of a WebP file that `write_webp_tags` or ComfyUI's own nodes wrote.

    Args:
        path: the file.

    Returns:
        The text of each tag by its name; empty if the file has no such tags.

    Raises:
        VideoError: if the file does not exist or is no picture.
    """
    try:
        with Image.open(path) as image:
            values = [value for value in image.getexif().values() if isinstance(value, str)]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise VideoError(f"{path} cannot be read as WebP ({error}). Check the path, or copy the file again.") from error
    # Pillow reads bytes as Latin-1.
    texts = [value.encode("latin-1").decode("utf-8", "replace") for value in values]
    return dict(text.split(":", 1) for text in texts if ":" in text)


def _chunk(name: bytes, payload: bytes) -> bytes:
    return name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def _directory(tags: Mapping[str, str]) -> bytes:
    """Build a little-endian TIFF with one image file directory: header, entries by ascending number, strings."""
    numbers = range(_LAST_ENTRY - len(tags) + 1, _LAST_ENTRY + 1)
    entries, strings = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    for number, (name, value) in zip(numbers, tags.items(), strict=True):
        text = f"{name}:{value}".encode() + b"\0"
        entries += struct.pack("<HHII", number, _ASCII, len(text), start + len(strings))
        strings += text + b"\0" * (len(text) % 2)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + strings

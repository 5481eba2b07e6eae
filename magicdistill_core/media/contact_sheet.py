"""Pictures of clips. They need no PyAV, so a machine that only trains need not have it."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SHEET_MIN_CELL = 160
_SHEET_LABEL_HEIGHT = 24
_SHEET_GAP = 4


def contact_sheet(rows: Sequence[Tensor], labels: Sequence[str], columns: int) -> Image.Image:
    """Draw clips as labelled rows of frames on one picture.

    Args:
        rows: uint8 clips `[T, H, W, 3]` of one frame size; a still image is a clip of one frame.
        labels: the text above each row.
        columns: largest number of frames per row; they are evenly spaced in time.

    Raises:
        ValueError: if there is no row, frame sizes differ, the number of labels is not the number of rows, or `columns`
            is less than 1.
    """
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1 or len(labels) != len(rows) or columns < 1:
        raise ValueError(
            f"A contact sheet needs one frame size, one label per row and at least one column; got {len(rows)} rows, "
            f"{len(labels)} labels, {columns} columns and the frame sizes {sizes}."
        )
    height, width, _ = sizes.pop()
    # Very small frames are enlarged by an integer factor, which keeps their pixels sharp.
    zoom = max(1, -(-_SHEET_MIN_CELL // height))
    cell = (width * zoom, height * zoom)
    pitch_x, pitch_y = cell[0] + _SHEET_GAP, _SHEET_LABEL_HEIGHT + cell[1] + _SHEET_GAP
    used = min(columns, max(row.shape[0] for row in rows))
    sheet = Image.new("RGB", (used * pitch_x + _SHEET_GAP, len(rows) * pitch_y), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for number, (clip, label) in enumerate(zip(rows, labels, strict=True)):
        top = number * pitch_y
        draw.text((_SHEET_GAP, top + 3), label, fill="black", font=font)
        picked = torch.linspace(0, clip.shape[0] - 1, min(columns, clip.shape[0])).round().int()
        for column, index in enumerate(picked.tolist()):
            picture = Image.fromarray(clip[index].cpu().numpy()).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(picture, (_SHEET_GAP + column * pitch_x, top + _SHEET_LABEL_HEIGHT))
    return sheet

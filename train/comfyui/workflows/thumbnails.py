"""Thumbnails of the workflows: frames of the pocket model's videos, and drawn cards for workflows that are not run."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from magicdistill_core.media.video import read_video
from magicdistill_core.pocket.render import portrait_clip

SIDE = 384
_QUALITY = 85
_INK, _FAINT = (238, 240, 244), (122, 132, 150)
_PAPER, _BLANK = (30, 34, 44), (46, 52, 66)
_SWEEP_FRAMES, _SWEEP_SHOWN, _SWEEP_GAP = 17, 5, 4


def video_thumbnail(video: Path) -> Image.Image:
    """Return a picture of four frames of a video, from its first to its last."""
    frames = list(read_video(video).frames)
    last = len(frames) - 1
    sheet = Image.new("RGB", (SIDE, SIDE))
    half = SIDE // 2
    for place in range(4):
        frame = _image(frames[round(place * last / 3)]).resize((half, half), Image.Resampling.LANCZOS)
        sheet.paste(frame, ((place % 2) * half, (place // 2) * half))
    return sheet


def sweep_thumbnail(picture: Path) -> Image.Image:
    """Return a picture of five of the 17 frames (columns) of the sweep's picture.

    Args:
        picture: the image file that the workflow `real_fake_sweep_pocket` saved.
    """
    with Image.open(picture) as whole:
        cell = (whole.width + _SWEEP_GAP) // _SWEEP_FRAMES
        size = cell - _SWEEP_GAP
        sheet = Image.new("RGB", (_SWEEP_SHOWN * cell - _SWEEP_GAP, whole.height), "white")
        for place in range(_SWEEP_SHOWN):
            left = round(place * (_SWEEP_FRAMES - 1) / (_SWEEP_SHOWN - 1)) * cell
            sheet.paste(whole.crop((left, 0, left + size, whole.height)), (place * cell, 0))
    return sheet.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def card(title: str, lines: list[str], seed: int) -> Image.Image:
    """Draw a portrait, empty frames and a short description of the workflow. The card shows no output of a model.

    Args:
        title: first line of the description.
        lines: further lines.
        seed: seed of the drawn portrait.
    """
    sheet = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    face = _image(portrait_clip(seed, 1, 144)[0])
    sheet.paste(face, (24, 24))
    for place in range(3):
        corner = (220 + 14 * place, 40 + 14 * place)
        draw.rounded_rectangle((*corner, corner[0] + 112, corner[1] + 84), 8, fill=_BLANK, outline=_FAINT, width=2)
    centre = (304, 110)
    triangle = [
        (centre[0] + 20 * math.cos(angle), centre[1] + 20 * math.sin(angle))
        for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)
    ]
    draw.polygon(triangle, fill=_INK)
    draw.line((176, 96, 204, 96), fill=_FAINT, width=4)
    draw.polygon([(204, 86), (216, 96), (204, 106)], fill=_FAINT)
    draw.text((24, 206), title, fill=_INK, font=ImageFont.load_default(32))
    for number, line in enumerate(lines):
        draw.text((24, 258 + 32 * number), line, fill=_FAINT, font=ImageFont.load_default(22))
    return sheet


def save_thumbnail(sheet: Image.Image, path: Path) -> None:
    """Write a thumbnail as JPEG, the format that ComfyUI's page expects."""
    sheet.convert("RGB").save(path, quality=_QUALITY)


def _image(frame_HWC: Tensor) -> Image.Image:
    return Image.fromarray(frame_HWC.numpy())

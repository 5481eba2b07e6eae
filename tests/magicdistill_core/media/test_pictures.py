"""Pictures as a player shows them."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magicdistill_core.media.video import read_video
from magicdistill_core.media.video_writing import write_video

from .clips import write_clip

TIMES = [0.0, 0.04, 0.08]
CORNERS = {"top left": (slice(8), slice(8)), "top right": (slice(8), slice(-8, None))} | {
    "bottom left": (slice(-8, None), slice(8)),
    "bottom right": (slice(-8, None), slice(-8, None)),
}


def first(path: Path, deep: bool = False) -> torch.Tensor:
    return next(read_video(path, deep=deep).frames)


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Put the transformation matrix `x' = ax + cy, y' = bx + dy` (ISO 14496-12, 6.2.2) into the track header."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and ids, layer to reserved
    struct.pack_into(">9i", content, start, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_every_rotation_and_mirroring_is_applied(tmp_path: Path, mirrored: bool, quarter: int) -> None:
    frames = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    frames[:, :16, :16] = 255  # white at the top left as stored
    path = tmp_path / "a.mp4"
    write_video(path, frames, 10.0, crf=5)
    a, b, c, d = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))[quarter]
    if mirrored:  # before the turn, x' = -x
        a, b = -a, -b
    with_matrix(path, a, b, c, d)
    frame = first(path)
    assert tuple(frame.shape[:2]) == ((64, 32) if quarter % 2 else (32, 64))
    # The patch is at the stored point (-1, -1) around the centre, whose shown place the matrix tells.
    x, y = -a - c, -b - d
    corner = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
    assert [name for name, place in CORNERS.items() if frame[place].float().mean() > 200] == [corner]


def disc(shape: Fraction, width: int, height: int) -> NDArray[np.uint8]:
    """A white disc as it is stored with pixels of another shape."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = ((columns - width / 2) * float(shape)) ** 2 + (rows - height / 2) ** 2 < 30**2
    return np.repeat(inside[..., None], 3, 2).astype(np.uint8) * 255


@pytest.mark.parametrize(
    ("shape", "stored", "shown"),
    [
        (Fraction(4, 3), (144, 108), (192, 108)),
        (Fraction(64, 45), (90, 72), (128, 72)),
        (Fraction(8, 9), (90, 80), (90, 90)),
        (Fraction(1, 2), (144, 72), (144, 144)),
        (Fraction(1), (90, 72), (90, 72)),
        (Fraction(1000), (90, 72), (90, 72)),  # damage
    ],
)
def test_pixels_become_square(tmp_path: Path, shape: Fraction, stored: tuple[int, int], shown: tuple[int, int]) -> None:
    real = shape if shape < 10 else Fraction(1)
    picture = disc(real, *stored)
    # The first file states the shape in the container, the second one in its h264 stream.
    write_clip(tmp_path / "a.mov", TIMES, "mjpeg", "yuvj444p", picture=lambda _: picture, sample_aspect_ratio=shape)
    write_clip(tmp_path / "a.ts", TIMES, "libx264", "yuv420p", picture=lambda _: picture, sample_aspect_ratio=shape)
    for name in ("a.mov", "a.ts"):
        bright = first(tmp_path / name).float().mean(-1) > 128
        assert (bright.shape[1], bright.shape[0]) == shown
        wide, high = int(bright.any(0).sum()), int(bright.any(1).sum())
        assert abs(wide - high) <= 2


def test_pixels_are_made_square_before_the_turn(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    write_clip(path, TIMES, "mjpeg", "yuvj420p", sample_aspect_ratio=Fraction(2))
    with_matrix(path, 0, 1, -1, 0)
    assert first(path).shape == (128, 48, 3)


BARS = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 150, 120]]], np.uint8), 8, 0).repeat(16, 1)
BT709, BT601, BT2020 = 1, 6, 9


@pytest.mark.parametrize("wide", [1, 2])
@pytest.mark.parametrize(
    ("size", "written", "stated"),
    [
        ((64, 48), BT601, None),
        ((1280, 720), BT709, None),  # a file that does not say its matrix: players go by the size
        ((64, 48), BT709, BT709),
        ((1280, 720), BT601, BT601),
        ((64, 48), BT2020, BT2020),
    ],
)
def test_colours_of_every_matrix_and_range(
    tmp_path: Path, size: tuple[int, int], written: int, stated: int | None, wide: int
) -> None:
    picture = np.tile(BARS, (-(-size[1] // 8), -(-size[0] // 64), 1))[: size[1], : size[0]]
    write_clip(
        tmp_path / "a.mkv",
        [0.0, 0.04],
        pixels="yuv444p",
        picture=lambda _: picture,
        colorspace=written,
        color_range=wide,
    )
    content = (tmp_path / "a.mkv").read_bytes()
    if stated is None:
        assert content.count(bytes([0x55, 0xB1, 0x81, written])) == 1  # Matroska's element MatrixCoefficients
        content = content.replace(bytes([0x55, 0xB1, 0x81, written]), bytes([0x55, 0xB1, 0x81, 2]))
        (tmp_path / "a.mkv").write_bytes(content)
    back = first(tmp_path / "a.mkv")
    assert (back[4, 8:64:16].int() - torch.from_numpy(picture[4, 8:64:16].astype(int))).abs().max() <= 2


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "options"),
    [
        (".mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        (".mov", "qtrle", "argb", {}),
        (".webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "b": "0"}),
        (".webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "b": "1M"}),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_transparent_pictures_are_laid_on_white(
    tmp_path: Path, suffix: str, codec: str, pixels: str, options: dict[str, str], deep: bool
) -> None:
    picture = np.zeros((48, 96, 4), np.uint8)
    picture[:, :32] = (200, 0, 0, 255)
    picture[:, 32:64] = (0, 0, 200, 0)  # hidden
    picture[:, 64:] = (0, 0, 0, 128)
    path = tmp_path / f"a{suffix}"
    write_clip(path, TIMES, codec, pixels, picture=lambda _: picture, options=options)
    frame = first(path, deep) * (255 if deep else 1)
    for column, colour in ((16, (200, 0, 0)), (48, (255, 255, 255)), (80, (127, 127, 127))):
        assert frame[24, column].tolist() == pytest.approx(colour, abs=6)


def combed(number: int) -> NDArray[np.uint8]:
    """A bar that moves 2 columns per field: even rows show it earlier than odd rows."""
    picture = np.zeros((48, 96, 3), np.uint8)
    for field in (0, 1):
        place = 4 * number + 2 * field
        picture[field::2, place : place + 24] = 255
    return picture


def combs(frame: torch.Tensor) -> float:
    """The mean difference of neighbouring rows in the middle of the picture."""
    return float((frame[8:40, :, 0].float().diff(dim=0)).abs().mean())


def test_interlaced_frames_become_whole_pictures(tmp_path: Path) -> None:
    times = [n / 25 for n in range(12)]
    settings = {"rate": 25, "tick": Fraction(1, 25), "picture": combed, "codec": "mpeg2video", "pixels": "yuv420p"}
    write_clip(tmp_path / "fields.ts", times, options={"flags": "+ildct+ilme", "q:v": "2"}, **settings)
    write_clip(tmp_path / "frames.ts", times, options={"q:v": "2"}, **settings)
    video, plain = read_video(tmp_path / "fields.ts"), read_video(tmp_path / "frames.ts")
    shown, stored = list(video.frames), list(plain.frames)
    assert len(shown) == len(stored) == 12
    assert max(map(combs, shown[1:-1])) < 0.35 * min(map(combs, stored))
    # Each picture stays at its place: the bar's left edge is that of one of its fields.
    for number, frame in enumerate(shown):
        edge = int((frame[24, :, 0] > 128).int().argmax())
        assert 4 * number - 1 <= edge <= 4 * number + 3
    assert ["interlaced" in note for note in video.notes] == [True]
    assert plain.notes == []


@pytest.mark.parametrize(("width", "height"), [(63, 47), (33, 31), (97, 48)])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p", "yuv420p10le"])
def test_odd_sizes_come_back_the_same_every_time(tmp_path: Path, width: int, height: int, pixels: str) -> None:
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    picture = picture.repeat(8, 0).repeat(8, 1)[:height, :width]
    write_clip(tmp_path / "a.mkv", TIMES, pixels=pixels, picture=lambda _: picture)
    # Frames of one clip may differ: the conversion before the encoder reads beyond odd edges. So readings are compared.
    frames, *others = [list(read_video(tmp_path / "a.mkv").frames) for _ in range(3)]
    assert frames[0].shape == (height, width, 3)
    for other in others:
        assert all(torch.equal(one, same) for one, same in zip(frames, other, strict=True))
    assert (frames[0][4::8, 4::8].int() - torch.from_numpy(picture[4::8, 4::8].astype(int))).abs().max() < 12

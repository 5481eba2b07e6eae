from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicdistill_core.errors import VideoError
from magicdistill_core.media.contact_sheet import contact_sheet
from magicdistill_core.media.video import Box, crop_note, read_image, read_tags, read_video, resize_crop
from magicdistill_core.media.video_writing import write_video

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 150, 120]], dtype=torch.uint8)


def counted(frames: int, height: int = 32, width: int = 64) -> torch.Tensor:
    """Frame n is grey of level 10n: its number can be read back after lossy coding."""
    levels = 10 * torch.arange(frames, dtype=torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(-1, height, width, 3).contiguous()


def numbers(path: Path, fps: float | None = None) -> list[int]:
    return [round(float(frame.float().mean()) / 10) for frame in read_video(path, fps).frames]


def test_written_colours_size_rate_and_tags_come_back(tmp_path: Path) -> None:
    frames = COLOURS.repeat_interleave(16, 0)[None, None].expand(5, 48, -1, -1)
    tags = {"prompt": '{"1": {"class_type": "X"}}', "workflow": "w" * 100_000, "title": "ü ✓"}
    write_video(tmp_path / "a.mp4", frames, 30000 / 1001, tags, crf=5)
    video = read_video(tmp_path / "a.mp4")
    assert video.fps == pytest.approx(30000 / 1001, rel=1e-9)
    back = torch.stack(list(video.frames))
    assert back.shape == (5, 48, 64, 3)
    assert (back[:, 24, 8::16].int() - frames[:, 24, 8::16].int()).abs().max() <= 3
    found = read_tags(tmp_path / "a.mp4")
    assert {key: found[key] for key in tags} == tags
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_pictures_are_neither_darkened_nor_tinted(tmp_path: Path) -> None:
    coarse = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    write_video(tmp_path / "a.mp4", frames, 24.0, crf=0)
    (back,) = read_video(tmp_path / "a.mp4").frames
    inside = (back.int() - frames[0].int()).float()[7::16, 7::16]  # away from edges, where hues mix
    assert inside.mean((0, 1)).abs().max() < 0.4
    assert inside.abs().max() <= 4


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, list(range(12))),
        (12.0, list(range(12))),
        (6.0, list(range(0, 12, 2))),
        (4.0, list(range(0, 12, 3))),
        (36.0, [0, 0, *(n for n in range(1, 12) for _ in range(3))]),
    ],
)
def test_resampling_shows_the_nearest_frame(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    write_video(tmp_path / "a.mp4", counted(12), 12.0)
    assert numbers(tmp_path / "a.mp4", fps) == expected


@pytest.mark.parametrize(("source", "target"), [(30.0, 24.0), (25.0, 24.0), (30000 / 1001, 25.0), (24.0, 30.0)])
def test_resampling_keeps_the_duration_and_never_errs_by_more_than_half_a_frame(
    tmp_path: Path, source: float, target: float
) -> None:
    write_video(tmp_path / "a.mp4", counted(24), source)
    got = numbers(tmp_path / "a.mp4", target)
    assert abs(len(got) / target - 24 / source) <= 1 / target
    for k, number in enumerate(got):
        assert abs(number / source - k / target) <= 0.5 / source + 1e-3


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 31, 64, 3), "64 x 31.*even sides"), ((2, 32, 63, 3), "63 x 32.*even sides"), ((0, 32, 64, 3), "0 frames")],
)
def test_odd_sides_and_no_frames_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        write_video(tmp_path / "a.mp4", torch.zeros(shape, dtype=torch.uint8), 24.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [torch.zeros(2, 32, 32, 3).int(), torch.zeros(2, 32, 32), torch.zeros(2, 32, 32, 4)])
def test_only_rgb_of_bytes_or_floats_is_written(tmp_path: Path, frames: torch.Tensor) -> None:
    with pytest.raises(VideoError, match=r"a\.mp4.*uint8 .*\[H, W, 3\]"):
        write_video(tmp_path / "a.mp4", frames, 24.0)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, counted(3), 12.0)
    old = path.read_bytes()
    with pytest.raises(VideoError, match=r"a\.mp4 .*encoded"):
        write_video(path, torch.zeros(2, 20000, 2, 3, dtype=torch.uint8), 24.0, crf=18)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4 .*exist"):
        read_video(tmp_path / "none.mp4")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(VideoError, match=r"empty\.mp4 is empty"):
        read_video(empty)
    text = tmp_path / "text.mp4"
    text.write_text("this is no video" * 100)
    for read in (read_video, read_tags):
        with pytest.raises(VideoError, match=r"text\.mp4 .*h264"):
            read(text)


def test_a_truncated_index_is_refused_and_truncated_frames_are_reported(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (24, 64, 64, 3), generator=generator, dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, noise, 12.0)
    whole = path.read_bytes()
    path.write_bytes(whole[:600])
    with pytest.raises(VideoError, match="damaged"):
        list(read_video(path).frames)
    path.write_bytes(whole[: len(whole) // 2])
    try:
        video = read_video(path)
        count = len(list(video.frames))
    except VideoError as error:
        assert "damaged" in str(error)  # noqa: PT017
    else:
        assert 0 < count < 24
        assert "24 frames, only" in video.notes[-1]


def test_a_file_without_video_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"a\.wav .*video stream"):
        read_video(path)


def test_real_clips_read(shared_data: Path) -> None:
    carphone = read_video(shared_data / "clips" / "carphone_pristine.mp4")
    frames = list(carphone.frames)
    assert carphone.fps == pytest.approx(29.97, abs=1e-3)
    assert len(frames) == 120
    assert frames[0].shape == (144, 192, 3)  # 176 stored columns of wide pixels (128:117)
    portrait = read_video(shared_data / "clips" / "liveportrait_d13.mp4", fps=24.0)
    assert next(portrait.frames).shape == (1280, 720, 3)


def test_images_stand_upright_and_transparency_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to show
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.dtype == torch.uint8
    assert torch.equal(turned, torch.from_numpy(np.rot90(pixels, k=-1).copy()))

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[3, 0].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").unique().tolist() == [128]


def test_bad_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.png .*exist"):
        read_image(tmp_path / "none.png")
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "whole.jpg")
    assert read_image(tmp_path / "whole.jpg").shape == noise.shape
    whole = (tmp_path / "whole.jpg").read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2]):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(VideoError, match=r"bad\.jpg .*PNG, JPEG or WebP"):
            read_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize(("height", "width", "box"), [(96, 96, (28, 0, 128, 100)), (32, 80, (0, 9, 156, 71))])
def test_resize_crop_equals_pillow_on_its_region(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    # Low contrast: Pillow clips overshoots between its two passes.
    frames = torch.randint(100, 150, (2, 100, 156, 3), generator=generator, dtype=torch.uint8)
    got = resize_crop(frames, height, width)
    for frame, mine in zip(frames, got, strict=True):
        oracle = Image.fromarray(frame.numpy()).crop(box).resize((width, height), Image.Resampling.BICUBIC)
        assert (mine.int() - torch.from_numpy(np.array(oracle)).int()).abs().max() <= 1
    unit = resize_crop(frames.float() / 255, height, width)
    assert (unit * 255 - got.float()).abs().max() <= 0.5 + 1e-3


def test_resize_crop_keeps_the_upper_part_of_a_tall_picture_and_the_middle_of_a_wide_one() -> None:
    rows = torch.arange(120, dtype=torch.uint8)[:, None, None].expand(120, 40, 3)
    assert torch.equal(resize_crop(rows, 40, 40), rows[20:60])  # of 80 surplus rows 20 go at the top
    assert torch.equal(resize_crop(rows[:41], 40, 40), rows[:40])
    wide = rows.transpose(0, 1)
    assert torch.equal(resize_crop(wide, 40, 40), wide[:, 40:80])


@pytest.mark.parametrize(
    ("face", "rows"),
    [
        (Box(10, 60, 20, 20), (54, 94)),  # its centre, row 70, two fifths down the 40
        (Box(0, 0, 40, 10), (0, 40)),
        (Box(5, 110, 10, 10), (80, 120)),
        (Box(0, 0, 40, 120), (44, 84)),
    ],
)
def test_resize_crop_follows_a_face_as_far_as_the_picture_reaches(face: Box, rows: tuple[int, int]) -> None:
    tall = torch.arange(120, dtype=torch.uint8)[:, None, None].expand(120, 40, 3)
    assert torch.equal(resize_crop(tall, 40, 40, face), tall[slice(*rows)])


@pytest.mark.parametrize(("x", "columns"), [(0, (0, 40)), (50, (35, 75)), (100, (80, 120))])
def test_resize_crop_puts_a_face_in_the_middle_of_the_width(x: int, columns: tuple[int, int]) -> None:
    wide = torch.arange(120, dtype=torch.uint8)[None, :, None].expand(40, 120, 3)
    assert torch.equal(resize_crop(wide, 40, 40, Box(x, 3, 10, 10)), wide[:, slice(*columns)])


def test_resize_crop_leaves_fitting_frames_alone() -> None:
    frames = counted(2)
    assert torch.equal(resize_crop(frames, 32, 64), frames)
    assert resize_crop(frames[0], 16, 16).shape == (16, 16, 3)


def test_a_note_reports_a_crop_that_removes_much() -> None:
    assert crop_note(100, 100, 96, 96) is None
    assert crop_note(104, 100, 96, 96) is None
    note = crop_note(1280, 720, 96, 96)
    assert note is not None
    for fact in ("720 x 1280", "44%", "96 x 96"):
        assert fact in note
    assert crop_note(720, 1280, 96, 96) == note.replace("720 x 1280", "1280 x 720")


def test_a_contact_sheet_shows_first_and_last_frame_of_each_row() -> None:
    clip = counted(17, 96, 96)
    still = torch.full((1, 96, 96, 3), 77, dtype=torch.uint8)
    sheet = np.array(contact_sheet([still, clip], ["start image", "4 steps"], columns=5))
    assert sheet.shape == (2 * (24 + 192 + 4), 5 * (192 + 4) + 4, 3)
    middle = [sheet[24 + 96 + row * 220, 4 + 96 + column * 196, 0] for row in (0, 1) for column in range(5)]
    assert middle == [77, 255, 255, 255, 255, 0, 40, 80, 120, 160]
    assert (sheet[:24] < 128).any()  # the label
    with pytest.raises(ValueError, match="2 rows, 1 labels"):
        contact_sheet([still, clip], ["one"], columns=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_resize_crop_accepts_every_floating_point_type(dtype: torch.dtype) -> None:
    image = torch.rand(60, 100, 3, generator=torch.Generator().manual_seed(1))
    found = resize_crop(image.to(dtype), 48, 64)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), resize_crop(image, 48, 64), atol=0.02, rtol=0)

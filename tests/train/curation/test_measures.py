"""Measures of frames, against pictures whose properties are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from .scans import picture

cv2 = pytest.importorskip("cv2")

from train.curation import measures  # noqa: E402
from train.curation.faces import Face  # noqa: E402


def grey(seed: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
    smooth = cv2.GaussianBlur(picture(seed, height, width), (0, 0), 2)
    return measures.small_frame(smooth).grey


def test_blur_lowers_the_sharpness_and_contrast_does_not_change_it() -> None:
    sharp = picture(0, 240, 320)[..., 0].copy()
    values = [measures.sharpness(cv2.GaussianBlur(sharp, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 4 * values[-1]
    assert measures.sharpness(sharp // 2 + 60) == pytest.approx(measures.sharpness(sharp), rel=0.02)
    assert measures.sharpness(np.full((64, 64), 90, np.uint8)) == 0


def test_black_bars_are_measured_to_the_pixel() -> None:
    frame = grey() // 2 + 60
    frame[:30], frame[-24:], frame[:, :40] = 0, 3, 8
    inside = measures.content(frame)
    assert np.round(np.array(inside) * (320, 240, 320, 240)).tolist() == [40, 30, 320, 216]
    assert measures.content(np.zeros((64, 64), np.uint8)) == (0, 0, 1, 1)  # a black frame has no bars


@pytest.mark.parametrize(("parts", "axis"), [(2, 1), (3, 1), (4, 1), (2, 0)])
def test_pictures_side_by_side_are_seen(parts: int, axis: int) -> None:
    pieces = [grey(seed, 240, 320) for seed in range(parts)]
    assert measures.joined(np.concatenate(pieces, axis=axis)) > 0.7
    assert measures.joined(pieces[0]) < 0.5


def test_lines_of_text_are_seen_and_faces_are_not() -> None:
    frame = Image.fromarray(cv2.GaussianBlur(picture(1, 536, 960), (0, 0), 6))
    before = measures.text(measures.text_frame(np.asarray(frame)))
    draw = ImageDraw.Draw(frame)
    draw.text(
        (60, 450), "What I wanted to say", "white", ImageFont.load_default(size=30), stroke_width=2, stroke_fill=0
    )
    assert before == 0
    assert measures.text(measures.text_frame(np.asarray(frame))) > 0.005


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_the_movement_of_the_background_is_measured(shift: int) -> None:
    wide = cv2.GaussianBlur(picture(2, 240, 400), (0, 0), 1.5)
    one, other = (measures.small_frame(np.ascontiguousarray(wide[:, x : x + 320])) for x in (20, 20 + shift))
    assert measures.camera_shift(one, other, None) * 320 == pytest.approx(shift, abs=0.3)


def test_a_plain_wall_does_not_move() -> None:
    wall = measures.small_frame(np.full((240, 320, 3), 120, np.uint8))
    assert measures.camera_shift(wall, wall, None) == 0


def test_the_movement_of_a_face_is_in_its_heights() -> None:
    points = np.array([(0.4, 0.2), (0.6, 0.7)], np.float32)
    before, now = (Face(0.4 + dx, 0.2, 0.2, 0.5, points + np.float32([dx, 0])) for dx in (0.0, 0.1))
    # A tenth of the width of a frame of 2:1 is a fifth of its height, and the face has half of the height.
    assert measures.face_shift(before, now, 2.0) == pytest.approx(0.4)


def test_the_hash_of_a_copy_is_close_and_of_another_picture_far() -> None:
    def bits(one: np.ndarray, other: np.ndarray) -> int:
        frames = [measures.small_frame(image) for image in (one, other)]
        hashes = [measures.fingerprint(frame, measures.content(frame.grey)) for frame in frames]
        return (hashes[0] ^ hashes[1]).bit_count()

    image = cv2.GaussianBlur(picture(3, 480, 640), (0, 0), 3)
    small = cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA)
    barred = np.pad(image, ((60, 60), (0, 0), (0, 0)))
    assert bits(image, small) <= 2
    assert bits(image, barred) <= 4
    assert bits(image, cv2.GaussianBlur(picture(4, 480, 640), (0, 0), 3)) > 15


def test_exposure_counts_black_and_white() -> None:
    half = np.concatenate([np.zeros((10, 10), np.uint8), np.full((10, 30), 255, np.uint8)], axis=1)
    assert measures.exposure(half) == pytest.approx((0.75, 0.25, 0.75))

import pytest

from magicdistill_core.geometry import check_geometry
from magicdistill_core.sizes import USUAL_SIZES, best_bucket, buckets, kept_share

AREA = 960 * 544


def test_buckets_are_all_that_fit_the_area_and_nothing_wider_fits() -> None:
    found = buckets(AREA)
    assert len(found) == len(set(found)) > 50
    for height, width in found:
        check_geometry(17, height, width)
        assert height * width <= AREA < (height + 16) * width
        assert max(height, width) <= 4 * min(height, width)
    assert {(544, 960), (960, 544), (720, 720)} <= set(found)
    oracle = {
        (height, width)
        for width in range(16, 1500, 16)
        for height in [max((h for h in range(16, 9000, 16) if h * width <= AREA), default=0)]
        if height and max(height, width) <= 4 * min(height, width)
    }
    assert set(found) == oracle


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        (1280, 720, (960, 544)),
        (720, 1280, (544, 960)),
        (1000, 1000, (720, 720)),
        (3000, 4000, (624, 832)),
        (544, 960, (544, 960)),
        (8000, 500, (1408, 368)),
    ],
)
def test_the_bucket_has_the_pictures_aspect(columns: int, rows: int, expected: tuple[int, int]) -> None:
    height, width = best_bucket(rows, columns, AREA)
    assert (width, height) == expected


@pytest.mark.parametrize("area", [AREA, 832 * 480, 1280 * 720, 96 * 96])
def test_no_usual_picture_loses_much(area: int) -> None:
    worst = 0.95 if area > 100_000 else 0.75
    for rows in range(500, 1600, 37):
        height, width = best_bucket(rows, 1000, area)
        assert kept_share(rows, 1000, height, width) > worst
        assert height * width > worst * area


def test_pocket_sizes_have_buckets_too() -> None:
    assert buckets(256) == [(16, 16)]
    assert best_bucket(500, 500, 96 * 96) == (96, 96)
    with pytest.raises(ValueError, match="at least 16 x 16"):
        buckets(255)


def test_kept_share_is_the_share_of_the_largest_region_of_the_aspect() -> None:
    assert kept_share(100, 200, 50, 50) == pytest.approx(0.5)
    assert kept_share(200, 100, 50, 50) == pytest.approx(0.5)
    assert kept_share(90, 160, 9, 16) == 1


def test_usual_sizes_are_possible() -> None:
    for size in USUAL_SIZES.values():
        check_geometry(size.frames, size.height, size.width)

from pathlib import Path

import numpy as np
import pytest

from magicdistill_core.media.hdr import to_sdr
from magicdistill_core.media.video import read_video

from .clips import write_clip

PQ, HLG, BT2020 = 16, 18, 9
# BT.2408, table 1: codes of reference levels in PQ and HLG, and their light in cd/m2.
REFERENCE = [(0.38, 0.38, 26), (0.58, 0.75, 203)]


@pytest.mark.parametrize(("pq", "hlg", "light"), REFERENCE)
def test_both_curves_agree_with_the_reference_levels(pq: float, hlg: float, light: float) -> None:
    by_pq, by_hlg = (
        float(to_sdr(np.full((1, 3), code, np.float32), kind)[0, 0]) for code, kind in ((pq, PQ), (hlg, HLG))
    )
    assert by_pq == pytest.approx(by_hlg, abs=0.02)
    if light < 50:  # below the knee, the light of the screen is the light of the video
        assert by_pq == pytest.approx((light / 203) ** (1 / 2.4), abs=0.02)
    else:
        assert 0.8 < by_pq < 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_greys_stay_grey_and_brighter_stays_brighter(transfer: int) -> None:
    greys = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[:, None], 3, 1)
    mapped = to_sdr(greys, transfer)
    assert mapped.dtype == np.float32
    assert np.abs(mapped - mapped[:, :1]).max() < 2e-3
    assert (np.diff(mapped[:, 0]) >= -1e-6).all()
    assert mapped[0, 0] == 0
    assert mapped[-1, 0] == pytest.approx(1, abs=0.01)


def test_colours_of_bt709_come_back_from_bt2020() -> None:
    """BT.2087: a colour of BT.709 in BT.2020 primaries, dark enough that nothing is compressed."""
    colour = np.array([0.30, 0.12, 0.05])
    matrix = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = matrix @ colour * 100
    root = (light / 10000) ** (2610 / 16384)
    code = ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375
    back = to_sdr(code[None].astype(np.float32), PQ)[0]
    assert back**2.4 * 203 / 100 == pytest.approx(colour, abs=3e-3)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_clips_are_mapped_and_named(tmp_path: Path, transfer: int, deep: bool) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None].repeat(48, 0).repeat(3, 2)
    write_clip(
        tmp_path / "hdr.mkv",
        [0.0, 0.04],
        pixels="yuv444p10le",
        picture=lambda _: ramp,
        colorspace=BT2020,
        color_primaries=BT2020,
        color_trc=transfer,
    )
    video = read_video(tmp_path / "hdr.mkv", deep=deep)
    row = next(video.frames)[24].float().numpy() / (1 if deep else 255)
    expected = to_sdr(np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[:, None], 3, 1), transfer)
    assert row == pytest.approx(expected, abs=0.02)
    assert ["HDR" in note for note in video.notes] == [True]

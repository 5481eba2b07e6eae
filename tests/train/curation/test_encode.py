"""Windows of shots, and the dataset that is made from them."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from magicdistill_core.pocket.files import VAE
from tests.magicdistill_core.media.clips import write_clip
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError
from train.data.windows import WindowGeometry

from .scans import Marked, marked, moving, scanned, write_shots

pytest.importorskip("scenedetect")
pytest.importorskip("pyarrow")

from train.curation.encode import Share, dataset_folders, encode
from train.curation.look import look
from train.curation.packages import CurationError
from train.curation.windows import ShotPlan, choose_geometry, shot_windows

SMALL = WindowGeometry(5, 32, 32, 24.0, 5)
TALL = WindowGeometry(5, 48, 32, 24.0, 5)
# The random pictures are no portraits: only these rules apply to them.
RULES = "face_share: {least: 0.2}\nseconds: {least: 0.2}\n"


def starts(path: Path, geometry: WindowGeometry = SMALL) -> list[int]:
    plans = [ShotPlan(row, geometry) for row in look(path, Marked())]
    return [number for number, _, _ in shot_windows(path, plans)]


def test_no_window_spans_a_cut(tmp_path: Path) -> None:
    write_shots(tmp_path / "a.mkv", [(0, 13), (1, 7), (2, 4), (3, 11)])
    assert starts(tmp_path / "a.mkv") == [0, 5, 13, 24, 29]


def test_no_window_spans_a_gap(tmp_path: Path) -> None:
    times = [n / 24 for n in range(12)] + [20 + n / 24 for n in range(12)]
    write_clip(tmp_path / "a.mkv", times, picture=lambda n: marked(moving(0, n), face=True))
    assert starts(tmp_path / "a.mkv") == [0, 5, 12, 17]


def test_every_sample_of_a_window_shows_the_face(tmp_path: Path) -> None:
    write_shots(tmp_path / "a.mkv", [(0, 72)], faceless=lambda number: 24 <= number < 44)
    rows = look(tmp_path / "a.mkv", Marked())
    without = [sample["frame"] for row in rows for sample in row["samples"] if "x" not in sample]
    assert without
    rows = [row | {"samples": [{"x": None} | s for s in row["samples"]]} for row in rows]
    found = [n for n, _, _ in shot_windows(tmp_path / "a.mkv", [ShotPlan(row, SMALL) for row in rows])]
    assert len(found) >= 8
    for start in found:
        assert not any(start - 4 < frame < start + 5 + 4 for frame in without), (start, without)


def test_a_window_is_cropped_around_the_face_and_without_bars(tmp_path: Path) -> None:
    def picture(number: int) -> np.ndarray:
        # Black bars of 40 columns on both sides; the face is at the right, in red.
        image = np.full((96, 256, 3), 90, np.uint8)
        image[:, :40] = image[:, -40:] = 0
        image[:, 170:200] = (230, 20, 20)
        image[number % 4 :: 4, 60:160] = 140
        return image

    class Right(Marked):
        def find(self, frame, /):
            face = super().find(np.full((8, 8, 3), 255, np.uint8))[0]
            return [face._replace(x=170 / 256, y=0.2, width=30 / 256, height=0.4)]

    write_clip(tmp_path / "a.mkv", [n / 24 for n in range(12)], picture=picture)
    row = look(tmp_path / "a.mkv", Right())[0]
    assert (round(row["left"] * 256), round(row["right"] * 256)) == (40, 216)
    window = next(window for _, _, window in shot_windows(tmp_path / "a.mkv", [ShotPlan(row, TALL)]))
    assert window.shape == (5, 48, 32, 3)
    red = (window[..., 0].float() - window[..., 1].float() > 60).float().mean(dim=(0, 1))
    assert red[13:18].min() > 0.9  # in the middle of the width
    assert window.float().mean(dim=(0, 1, 3)).min() > 60  # no bar


def test_a_shot_gets_the_nearest_shape_and_the_longest_that_fits() -> None:
    row = {
        "width": 128,
        "height": 96,
        "seconds": 0.6,
        "bars": 0.0,
        "left": 0.0,
        "top": 0.0,
        "right": 1.0,
        "bottom": 1.0,
    }
    wide = [WindowGeometry(frames, 32, 48, 24.0, frames) for frames in (5, 9, 17)]
    assert choose_geometry(row, [SMALL, TALL, *wide]) == wide[1]
    assert choose_geometry(row | {"width": 72}, [SMALL, TALL, *wide]) == TALL
    assert choose_geometry(row | {"seconds": 0.1}, [SMALL, TALL, *wide]) is None
    assert choose_geometry(row, [WindowGeometry(5, 144, 192, 24.0, 5)]) is None  # would be enlarged


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest of six videos, and rules that suit it."""
    folder = tmp_path_factory.mktemp("curation")
    (folder / "videos").mkdir()
    for number in range(6):
        write_shots(folder / "videos" / f"{number}.mkv", [(3 * number, 11), (3 * number + 1, 12)])
    (folder / "rules.yaml").write_text(RULES)
    return scanned(folder / "manifest", folder / "videos"), folder / "rules.yaml"


def contents(dataset: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    data = LatentDataset(dataset)
    keys = list(data.index.keys())
    assert len(keys) == len(set(keys)) == len(data)
    return {key: tuple(data.batch([number])) for number, key in enumerate(keys)}


def assert_equal(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for key, tensors in first.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, second[key], strict=True)), key


@pytest.fixture(scope="module")
def whole(scan: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of all videos, made in one go."""
    out = tmp_path_factory.mktemp("whole") / "data"
    report = encode(*scan, out, VAE, [SMALL], Share())
    assert report.added == {out: 24}
    return out


def test_a_dataset_that_was_killed_and_continued_is_the_same(
    scan: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    arguments = [*map(str, scan), str(tmp_path / "data"), str(VAE)]
    program = (
        "import sys, train.data.dataset_writer as w; w._SHARD_SAMPLES = 3\n"
        "from pathlib import Path; from train.curation.encode import Share, encode\n"
        "from train.data.windows import WindowGeometry\n"
        "encode(*map(Path, sys.argv[1:5]), [WindowGeometry(5, 32, 32, 24.0, 5)], Share())"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("data/part-1of1/shard-00001*")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = len(LatentDataset(tmp_path / "data"))
    assert 0 < before < 24
    encode(*scan, tmp_path / "data", VAE, [SMALL], Share())
    assert_equal(whole, tmp_path / "data")
    again = encode(*scan, tmp_path / "data", VAE, [SMALL], Share())
    assert (again.already_in, again.added) == (6, {tmp_path / "data": 0})


def test_two_processes_encode_disjoint_parts_of_one_dataset(
    scan: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    command = [
        sys.executable,
        "-m",
        "train",
        "data",
        "encode",
        str(scan[0]),
        "--rules",
        str(scan[1]),
        "--out",
        str(out),
    ]
    command += ["--vae", str(VAE), "--size", "32x32x5", "--device", "cpu"]
    running = [subprocess.Popen([*command, "--part", f"{n}/2"], stdout=subprocess.DEVNULL) for n in (1, 2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert sorted(path.name for path in out.glob("part-*")) == ["part-1of2", "part-2of2"]
    assert_equal(whole, out)


def test_several_sizes_are_a_dataset_each(scan: tuple[Path, Path], tmp_path: Path) -> None:
    wide = WindowGeometry(9, 32, 48, 24.0, 9)
    report = encode(*scan, tmp_path, VAE, [TALL, wide], Share(1, 3))
    folders = dataset_folders(tmp_path, [TALL, wide])
    assert [folder.name for folder in folders.values()] == ["48x32x5", "32x48x9"]
    assert report.added[folders[TALL]] == 0  # all videos are wide
    data = LatentDataset(folders[wide])
    assert data.latent_shape == (16, 3, 4, 6)


def test_a_dataset_belongs_to_its_rules_and_its_command(scan: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES + "faces: {most: 3}\n")
    with pytest.raises(DatasetError, match="rules_sha256"):
        encode(scan[0], tmp_path / "rules.yaml", whole, VAE, [SMALL], Share())
    (tmp_path / "none.yaml").write_text("seconds: {least: 1000}")
    with pytest.raises(CurationError, match="none of the 12 shots"):
        encode(scan[0], tmp_path / "none.yaml", tmp_path / "data", VAE, [SMALL], Share())
    with pytest.raises(CurationError, match="3/2"):
        Share(3, 2)


def test_a_video_that_changed_or_moved_is_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_shots(tmp_path / "videos" / f"{name}.mkv", [(ord(name), 8)])
    (tmp_path / "rules.yaml").write_text(RULES)
    manifest = scanned(tmp_path / "m", tmp_path / "videos")
    write_shots(tmp_path / "videos" / "a.mkv", [(5, 8)])
    (tmp_path / "videos" / "b.mkv").unlink()
    report = encode(manifest, tmp_path / "rules.yaml", tmp_path / "d", VAE, [SMALL], Share())
    assert "changed" in report.skipped["a.mkv"]
    assert "--videos" in report.skipped["b.mkv"]

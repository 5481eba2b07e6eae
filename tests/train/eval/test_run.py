"""A complete evaluation of small videos, with the measures that need no network."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from magicdistill_core.errors import ConfigError
from magicdistill_core.media.video_writing import write_video
from train.cli import app
from train.commands.evaluation import evaluate as command

FRAMES, SIDE, FPS = 40, 64, 24


def moving(seed: int) -> Tensor:
    """A picture that moves: `[40, 64, 64, 3]`, uint8."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, (2 * SIDE, 2 * SIDE), mode="bicubic").clamp(0, 1)
    crops = [large[0, :, step : step + SIDE, step : step + SIDE] for step in range(FRAMES)]
    return (255 * torch.stack(crops)).to(torch.uint8).movedim(1, -1).contiguous()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("good", "frozen", "real", "images"):
        (folder / name).mkdir()
    for seed, name in enumerate(("anna", "ben", "cleo")):
        video = moving(seed)
        frozen = video.clone()
        frozen[10:] = video[10]
        write_video(folder / "real" / f"{name}.mp4", video, FPS, crf=10)
        write_video(folder / "good" / f"{name}.mp4", (video.float() * 0.98).to(torch.uint8), FPS)
        write_video(folder / "frozen" / f"{name}.mp4", frozen, FPS)
        Image.fromarray(video[0].numpy()).save(folder / "images" / f"{name}.png")
    whole = (folder / "good" / "anna.mp4").read_bytes()
    (folder / "frozen" / "damaged.mp4").write_bytes(whole[:900])
    (folder / "frozen" / "empty.mp4").write_bytes(b"")
    write_video(folder / "frozen" / "single.mp4", moving(9)[:1], FPS)
    return folder


def arguments(folders: Path, out: Path) -> list[str]:
    return [
        *("eval", "--generated", f"good={folders / 'good'}", "--generated", f"frozen={folders / 'frozen'}"),
        *("--images", str(folders / "images"), "--reference", str(folders / "real"), "--out", str(out)),
        *("--processes", "1", "--device", "cpu", "--shown", "2"),
    ]


@pytest.fixture(scope="module")
def out(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("result")
    done = CliRunner().invoke(app, arguments(folders, out))
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def result(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_what_cannot_run_is_named_and_has_no_number(result: dict) -> None:
    assert "dino_vitbase16_pretrain.pth missing" in result["not_run"]["subject"]
    assert "weights-inception-2015-12-05-6726825d.pth missing" in result["not_run"]["fid"]
    for system in result["systems"].values():
        assert "i2v_subject" not in system["figures"]
        assert system["distances"] == {}


def test_frozen_videos_are_found_and_good_ones_are_not(result: dict) -> None:
    frozen, good = (result["systems"][name]["figures"]["frozen"]["mean"] for name in ("frozen", "good"))
    assert frozen > 0.6
    assert good == 0
    assert "frozen" in result["systems"]["frozen"]["notes"]["anna.mp4"][0]


def test_damaged_videos_are_left_out_and_named(result: dict) -> None:
    left_out = {
        (entry["video"], entry["measure"]): entry["reason"] for entry in result["systems"]["frozen"]["left_out"]
    }
    assert ("damaged.mp4", "all") in left_out
    assert "0 bytes" in left_out["empty.mp4", "all"]
    assert left_out["single.mp4", "pixels"] == "it has a single frame"
    assert result["systems"]["frozen"]["figures"]["frozen"]["n"] == 3


def test_figures_have_intervals_and_pairs(result: dict) -> None:
    sharpness = result["systems"]["good"]["figures"]["sharpness"]
    assert sharpness["low"] <= sharpness["mean"] <= sharpness["high"]
    pair = result["differences"]["frozen - good"]["frozen"]
    assert pair["n"] == 3
    assert pair["low"] > 0.6


def test_the_reference_is_measured_too_and_is_nearer_to_the_good_videos(result: dict) -> None:
    assert result["systems"]["reference"]["facts"]["scored"] == 3
    psnr = {name: result["systems"][name]["figures"]["psnr"]["mean"] for name in ("good", "frozen")}
    assert psnr["good"] > psnr["frozen"] + 3


def test_the_reference_has_no_row_where_it_is_compared_with_itself(out: Path) -> None:
    tables = (out / "results.md").read_text().split("## ")
    with_row = {table.splitlines()[0]: "| reference |" in table for table in tables if "| good |" in table}
    assert with_row["Pictures and defects"]
    assert not with_row["Against the reference video of the same name"]


def test_facts_stand_beside_the_figures(result: dict, out: Path) -> None:
    facts = result["systems"]["good"]["facts"]
    assert facts["frames"] == {str(FRAMES): 3}
    assert facts["encoding"] == {"h264 crf 18": 3}
    assert result["systems"]["reference"]["facts"]["encoding"] == {"h264 crf 10": 3}
    assert "40 frames, 24 fps, 64x64, h264 crf 18" in (out / "results.md").read_text()
    assert any("encoding" in warning for warning in result["warnings"])


def test_the_markdown_has_the_papers_columns(out: Path) -> None:
    text = (out / "results.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| Method | i2v subject"))
    titles = [title.strip().removesuffix(" (↑)") for title in header.strip("|").split("|")]
    assert titles == [
        *("Method", "i2v subject", "subject consistency", "motion smoothness", "dynamic degree", "aesthetic quality"),
        *("imaging quality", "temporal flickering", "average"),
    ]
    row = next(line for line in text.splitlines() if line.startswith("| good | not run"))
    assert row.count("not run") == 7


class Sources(HTMLParser):
    """The files that a page shows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "src" and value]


def test_the_page_shows_differences_that_are_sure(out: Path) -> None:
    page = (out / "index.html").read_text()
    row = page.partition("<td>frozen (share of frames) (↓)</td>")[2].partition("</tr>")[0]
    assert row.startswith("<td><b>0.7")


def test_every_file_that_the_page_shows_is_there(out: Path) -> None:
    page = Sources()
    page.feed((out / "index.html").read_text())
    assert any(name.endswith("curves.png") for name in page.found)
    assert sum(name.endswith(".mp4") for name in page.found) == 6  # two start images in three folders
    assert all((out / name).is_file() for name in page.found)


def test_a_second_run_scores_only_what_is_missing(folders: Path, out: Path, result: dict) -> None:
    files = sorted((out / "cache").rglob("*.safetensors"))
    lost, cut = files[0], files[1]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    before = {path: path.stat().st_mtime_ns for path in files[2:]}
    done = CliRunner().invoke(app, arguments(folders, out))
    assert done.exit_code == 0, done.output
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert json.loads((out / "results.json").read_text()) == result


@pytest.mark.slow
def test_two_processes_give_the_same(folders: Path, result: dict, tmp_path: Path) -> None:
    options = [option if option != "1" else "2" for option in arguments(folders, tmp_path)]
    done = CliRunner().invoke(app, [*options, "--measures", "psnr_ssim"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "results.json").read_text())
    for name in ("good", "frozen"):
        figures = found["systems"][name]["figures"]
        assert figures["psnr"]["mean"] == pytest.approx(result["systems"][name]["figures"]["psnr"]["mean"], abs=1e-6)


def test_unknown_measures_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no measure 'fdi'"):
        command([str(folders / "good")], tmp_path, measures="pixels,fdi", processes=1, device="cpu")

"""Blind pairs: the order is hidden, is that of the key, and the choices are counted by it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.metrics.binomial import binomial_interval
from train.pocket import pairs
from train.pocket.measuring.contenders import Contender
from train.pocket.pairs import KEY_FILE, reveal, side_by_side, write_pairs

PAIRS = 16


@pytest.fixture
def black_and_white(monkeypatch: pytest.MonkeyPatch, teacher_file: Path) -> tuple[Contender, Contender]:
    """Two models: the samples of the first are black, those of the second are white."""

    def sample(contender: Contender, images: Tensor, seeds: range, **settings: object) -> Tensor:
        return torch.full((len(images), len(seeds), 16, 2, 4, 4), float(contender.steps == 2))

    def decode(vae: object, latents: Tensor) -> Tensor:
        return latents.mean(1)[:, :, None].expand(-1, -1, 3, -1, -1)

    monkeypatch.setattr(pairs, "load_vae", lambda file, device: None)
    monkeypatch.setattr(pairs, "encode", lambda vae, frames: torch.zeros(len(frames), 16, 1, 4, 4))
    monkeypatch.setattr(pairs, "sample", sample)
    monkeypatch.setattr(pairs, "decode", decode)
    return Contender("black", teacher_file, 1), Contender("white", teacher_file, 2)


@pytest.fixture
def folder(tmp_path: Path, black_and_white: tuple[Contender, Contender]) -> Path:
    write_pairs(*black_and_white, tmp_path / "vae.safetensors", tmp_path / "pairs", PAIRS, seed=5)
    return tmp_path / "pairs"


def darker_sides(folder: Path) -> str:
    """The darker side of each picture, L or R."""
    sides = ""
    for number in range(PAIRS):
        picture = np.asarray(Image.open(folder / f"pair-{number + 1:02d}.jpg").convert("L"), float)[30:34]
        left, right = np.array_split(picture, 2, axis=1)
        sides += "L" if left.mean() < right.mean() else "R"
    return sides


def test_the_key_names_what_the_pictures_show(folder: Path) -> None:
    key = json.loads((folder / KEY_FILE).read_text())
    assert darker_sides(folder) == "".join("L" if side == "first" else "R" for side in key["left"])
    assert (key["first"]["name"], key["second"]["steps"]) == ("black", 2)
    # Both orders occur, and no name says which is which.
    assert set(key["left"]) == {"first", "second"}
    assert {path.name for path in folder.iterdir()} == {KEY_FILE, *(f"pair-{n + 1:02d}.jpg" for n in range(PAIRS))}


def test_choices_are_counted_by_the_key(folder: Path) -> None:
    black = darker_sides(folder)
    found = reveal(folder, black)
    assert (found.first, found.pairs) == (PAIRS, PAIRS)
    low = binomial_interval(PAIRS, PAIRS).low
    assert "black (1 steps) was chosen in 16 of 16 pairs against white (2 steps): 100 %" in found.text
    assert f"{100 * low:.0f} % to 100 %" in found.text
    opposite = black.translate(str.maketrans("LR", "RL"))
    assert reveal(folder, opposite.lower()).first == 0
    assert reveal(folder, opposite[:4] + black[4:]).first == PAIRS - 4


@pytest.mark.parametrize("choices", ["LR", "L" * 17, "X" * 16])
def test_choices_that_do_not_fit_are_refused(folder: Path, choices: str) -> None:
    with pytest.raises(ConfigError, match="Expected 16 letters, L or R"):
        reveal(folder, choices)


def test_pairs_are_not_made_twice_and_need_a_key(
    folder: Path, black_and_white: tuple[Contender, Contender], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has pairs already"):
        write_pairs(*black_and_white, tmp_path / "vae.safetensors", folder, PAIRS, seed=6)
    with pytest.raises(ConfigError, match="is not the key of pairs"):
        reveal(tmp_path, "L" * 16)


def test_a_picture_shows_the_first_and_the_last_frame_of_both_sides() -> None:
    left, right = (torch.full((9, 8, 8, 3), level, dtype=torch.uint8) for level in (40, 200))
    left[-1], right[0] = 90, 250
    picture = np.asarray(side_by_side(left, right))
    row = picture[36, :, 0]
    assert {40, 90, 200, 250} <= set(row.tolist())
    assert row.tolist().index(40) < row.tolist().index(90) < row.tolist().index(250) < row.tolist().index(200)


def test_the_command_refuses_two_equal_sides_and_counts_choices(
    folder: Path, teacher_file: Path, magicdistill: Callable[..., tuple[int, str, str]]
) -> None:
    sides = ("--left", teacher_file, "--right", teacher_file, "--right-steps", 28)
    code, _, error = magicdistill("pocket", "pairs", "--out", folder / "new", *sides)
    assert code == 2
    assert "with 28 steps. Name two models, or two numbers of steps" in " ".join(error.split())
    code, out, _ = magicdistill("pocket", "pairs", "--out", folder, "--reveal", darker_sides(folder))
    assert code == 0
    assert "chosen in 16 of 16 pairs" in out

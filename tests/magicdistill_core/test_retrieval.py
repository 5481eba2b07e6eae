"""Retrieval finds what is most similar, embeds each picture once, and notices every change."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.errors import VideoError
from magicdistill_core.retrieval import Pictures, embed_folder, list_pictures, nearest

COLOURS = {
    "blue.png": (0, 0, 255),
    "green.jpg": (0, 255, 0),
    "more/red.webp": (255, 0, 0),
    "more/Pink.PNG": (255, 99, 99),
}


class Means:
    """A network whose embedding is the mean colour. It notes how many pictures it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
        self.seen += len(pictures)
        return torch.stack([picture.float().mean(dim=(0, 1)) for picture in pictures])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10 + len(name)), colour).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def embedded(folder: Path, network: str = "means") -> tuple[Pictures, int]:
    means = Means()
    return embed_folder(folder, folder.parent / "cache.safetensors", network, means), means.seen


def names(folder: Path, query: tuple[float, ...], count: int = 4) -> list[str]:
    pictures, _ = embedded(folder)
    return [path.relative_to(folder).as_posix() for path, _ in nearest(pictures, torch.tensor(query), count)]


def test_the_most_similar_pictures_come_first(folder: Path) -> None:
    assert names(folder, (1, 0, 0)) == ["more/red.webp", "more/Pink.PNG", "blue.png", "green.jpg"]
    assert names(folder, (0, 5, 0), 1) == ["green.jpg"]
    pictures, _ = embedded(folder)
    (_, best), *_, (_, worst) = nearest(pictures, torch.tensor([0.0, 0, 9]), 99)
    assert best == pytest.approx(1, abs=1e-3)
    assert worst == pytest.approx(0, abs=1e-2)


def test_only_new_and_changed_pictures_are_embedded(folder: Path) -> None:
    first, seen = embedded(folder)
    assert (seen, first.added) == (4, 4)
    again, seen = embedded(folder)
    assert (seen, again.added) == (0, 0)
    assert torch.equal(again.embeddings, first.embeddings)
    Image.new("RGB", (21, 10), (0, 0, 0)).save(folder / "black.png")
    Image.new("RGB", (33, 10), (255, 255, 0)).save(folder / "blue.png")
    (folder / "green.jpg").unlink()
    changed, seen = embedded(folder)
    assert (seen, changed.added) == (2, 2)
    assert [path.name for path in changed.paths] == ["black.png", "blue.png", "Pink.PNG", "red.webp"]
    # Another network has other embeddings.
    assert embedded(folder, "other")[1] == 4


def test_a_damaged_cache_is_made_again(folder: Path) -> None:
    embedded(folder)
    (folder.parent / "cache.safetensors").write_bytes(b"damage")
    assert embedded(folder)[1] == 4
    assert embedded(folder)[1] == 0


def test_a_stopped_run_goes_on(folder: Path) -> None:
    for number in range(300):
        Image.new("RGB", (4, 4), (number % 256, 7, 9)).save(folder / f"{number:03}.png")

    class Stopping(Means):
        def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
            if self.seen >= 280:
                raise KeyboardInterrupt
            return super().__call__(pictures)

    with pytest.raises(KeyboardInterrupt):
        embed_folder(folder, folder.parent / "cache.safetensors", "means", Stopping())
    assert embedded(folder)[1] == 304 - 256


def test_pictures_that_cannot_be_read_are_left_out_and_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    pictures, _ = embedded(folder)
    assert pictures.unreadable == ["broken.png"]
    assert len(pictures.paths) == 4


def test_folders_without_pictures_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(VideoError, match="no folder"):
        list_pictures(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="holds no pictures"):
        list_pictures(tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"No picture .* can be read, such as broken\.png"):
        embedded(tmp_path / "empty")
    with pytest.raises(VideoError, match=r"width 5, the pictures of width 3"):
        nearest(embedded(folder)[0], torch.ones(5), 1)


def test_ten_thousand_embeddings_are_searched_at_once(folder: Path) -> None:
    many = Pictures([Path(f"{number}.png") for number in range(10_000)], torch.eye(100).repeat(100, 1), 0, [])
    found = nearest(many, torch.eye(100)[42], 3)
    assert all(int(path.stem) % 100 == 42 for path, _ in found)

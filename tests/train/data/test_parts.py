"""Datasets in parts: writing, reading, continuing, and what does not fit together."""

import pickle
import sqlite3
from pathlib import Path

import pytest
import torch

import train.data.dataset_writer
from magicdistill_core.families.base import StartImage
from train.data.contents import Source
from train.data.dataset import LatentDataset
from train.data.dataset_index import Content, DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter, NotFiniteError
from train.data.held_out import held_out_samples
from train.data.part_writer import PartWriter
from train.run.preflight import dataset_digest

SOURCE = Source("a.mp4", Content(bytes=3, sha256="aa"))


def index(**changes: object) -> DatasetIndex:
    settings = {"frames": 5, "height": 32, "width": 32, "fps": 24.0, "dtype": "float32", "vae_sha256": "x"}
    return DatasetIndex.model_validate(settings | changes)


def latent(number: int) -> torch.Tensor:
    return torch.full((16, 2, 4, 4), float(number))


def write(folder: Path, part: str, numbers: range, **changes: object) -> None:
    with PartWriter(folder, index(**changes), part) as writer:
        for number in numbers:
            writer.append(f"{number}.mp4#0", latent(number), StartImage(latent(-number)[None, :, :1]))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.data.dataset_writer, "_SHARD_SAMPLES", 3)


def test_the_parts_are_one_dataset(tmp_path: Path) -> None:
    write(tmp_path, "1of2", range(5))
    write(tmp_path, "2of2", range(5, 9))
    write(tmp_path, "1of2", range(9, 11))
    data = pickle.loads(pickle.dumps(LatentDataset(tmp_path)))
    assert list(data.index.keys()) == [f"{n}.mp4#0" for n in (0, 1, 2, 3, 4, 9, 10, 5, 6, 7, 8)]
    numbers = [data.index.place(n).key.partition(".")[0] for n in range(len(data))]
    assert data.latents(range(11))[:, 0, 0, 0, 0].tolist() == [float(n) for n in numbers]
    assert data.image_latents([10, 0])[:, 0, 0, 0, 0].tolist() == [-8.0, 0.0]
    with pytest.raises(IndexError):
        data.latents([11])
    held = held_out_samples(data.index, 3)
    assert len(held) == 3
    assert data.index.bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors"))


def test_a_written_sample_is_known_in_every_part(tmp_path: Path) -> None:
    write(tmp_path, "1of2", range(4))
    with PartWriter(tmp_path, index(), "2of2") as writer:
        assert "0.mp4#0" in writer
        assert "7.mp4#0" not in writer
        with pytest.raises(ValueError, match="already"):
            writer.append("1.mp4#0", latent(1), StartImage(latent(1)[None, :, :1]))
        assert not writer.finished(SOURCE)
        writer.finish_source(SOURCE)
    with PartWriter(tmp_path, index(), "2of2") as writer:
        assert writer.finished(SOURCE)
        assert not writer.finished(Source("a.mp4", Content(bytes=3, sha256="bb")))
    assert LatentDataset(tmp_path).index.videos == ["a.mp4"]


def test_a_shard_that_the_index_does_not_name_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, "1of1", range(3))
    (tmp_path / "part-1of1" / "shard-00001.safetensors").write_bytes(b"of a killed process")
    (tmp_path / "part-1of1" / ".shard-00001.safetensors.7.tmp").write_bytes(b"")
    write(tmp_path, "1of1", range(3, 6))
    assert LatentDataset(tmp_path).latents([3, 5])[:, 0, 0, 0, 0].tolist() == [3.0, 5.0]
    assert not list(tmp_path.glob("*/.shard*"))


def test_a_damaged_shard_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, "1of1", range(6))
    shard = tmp_path / "part-1of1" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    data = LatentDataset(tmp_path)
    data.latents([0, 2])
    with pytest.raises(DatasetError, match=r"part-1of1/shard-00001.*truncated"):
        data.latents([4])
    shard.unlink()
    with pytest.raises(DatasetError, match="missing"):
        LatentDataset(tmp_path).latents([3])


def test_a_damaged_index_is_explained(tmp_path: Path) -> None:
    write(tmp_path, "1of1", range(3))
    (tmp_path / "part-1of1" / "part.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DatasetError, match=r"part.sqlite cannot be used.*again"):
        LatentDataset(tmp_path)


def test_the_two_formats_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "parts", "1of1", range(3))
    with pytest.raises(DatasetError, match="data encode"):
        LatentWriter(tmp_path / "parts", index())
    with LatentWriter(tmp_path / "listed", index()) as writer:
        writer.append("a#0", latent(0), StartImage(latent(0)[None, :, :1]))
    with pytest.raises(DatasetError, match="prepare"):
        PartWriter(tmp_path / "listed", index(), "1of1")
    with pytest.raises(DatasetError, match="fps"):
        PartWriter(tmp_path / "parts", index(fps=30.0), "1of1")


def test_the_digest_depends_on_every_sample_and_not_on_the_place(tmp_path: Path) -> None:
    digests = set()
    for name, numbers in (("a", range(4)), ("b", range(4)), ("c", range(5)), ("d", range(1, 5))):
        write(tmp_path / name, "1of1", numbers)
        digests.add(dataset_digest(LatentDataset(tmp_path / name).index))
    assert len(digests) == 3


def test_a_sample_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with PartWriter(tmp_path, index(), "1of1") as writer, pytest.raises(NotFiniteError, match="NaN"):
        writer.append("a#0", latent(0) * float("nan"), StartImage(latent(0)[None, :, :1]))


def test_another_part_may_grow_while_a_dataset_is_read(tmp_path: Path) -> None:
    write(tmp_path, "1of1", range(3))
    data = LatentDataset(tmp_path)
    write(tmp_path, "1of1", range(3, 6))
    assert len(data) == 3
    assert list(data.index.keys()) == ["0.mp4#0", "1.mp4#0", "2.mp4#0"]
    assert len(LatentDataset(tmp_path)) == 6


def test_the_index_is_a_plain_sqlite_file(tmp_path: Path) -> None:
    write(tmp_path, "1of1", range(4))
    rows = sqlite3.connect(tmp_path / "part-1of1" / "part.sqlite").execute("SELECT key, row FROM samples").fetchall()
    assert rows == [("0.mp4#0", 0), ("1.mp4#0", 1), ("2.mp4#0", 2), ("3.mp4#0", 0)]

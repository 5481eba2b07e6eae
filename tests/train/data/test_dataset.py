import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train.data.dataset_writer as dataset_writer
from magicdistill_core.families.base import StartImage
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter

SHAPE = (16, 2, 4, 6)


def index(**changes: object) -> DatasetIndex:
    settings = {"frames": 5, "height": 32, "width": 48, "fps": 24.0, "dtype": "float32", "vae_sha256": "aa"}
    return DatasetIndex.model_validate(settings | changes)


def sample(number: int) -> tuple[torch.Tensor, StartImage]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(SHAPE, generator=generator), StartImage(torch.randn(1, 16, 1, 4, 6, generator=generator))


def write(folder: Path, numbers: range, **changes: object) -> None:
    with LatentWriter(folder, index(**changes)) as writer:
        for number in numbers:
            writer.append(f"clip#{number}", *sample(number))


@pytest.fixture
def two_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_writer, "_SHARD_SAMPLES", 2)


@pytest.mark.usefixtures("two_a_shard")
def test_samples_come_back_in_the_asked_order_across_shards(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    data = LatentDataset(tmp_path)
    assert (data.frames, data.height, data.width, data.fps, len(data)) == (5, 32, 48, 24.0, 5)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [f"shard-0000{n}.safetensors" for n in range(3)]
    batch = data.batch([4, 0, 3, 0])
    for row, number in enumerate([4, 0, 3, 0]):
        assert torch.equal(batch.latents[row], sample(number)[0])
        assert torch.equal(batch.image_latents[row], sample(number)[1].latents[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_storage_reads_back_as_float32(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, range(2), dtype=dtype)
    batch = LatentDataset(tmp_path).batch([1])
    assert batch.latents.dtype == torch.float32
    assert torch.equal(batch.latents[0], sample(1)[0].to(getattr(torch, dtype)).float())


@pytest.mark.usefixtures("two_a_shard")
def test_an_interrupted_run_keeps_finished_shards_and_continues(tmp_path: Path) -> None:
    writer = LatentWriter(tmp_path, index())
    for number in range(3):
        writer.append(f"clip#{number}", *sample(number))
    writer.finish_source("clip")
    del writer  # killed before the last shard and the source were written
    with LatentWriter(tmp_path, index()) as again:
        assert [f"clip#{n}" in again for n in range(3)] == [True, True, False]
        assert not again.finished("clip")
        again.append("clip#2", *sample(2))
        again.finish_source("clip")
    with LatentWriter(tmp_path, index()) as third:
        assert third.finished("clip")
        assert len(third) == 3
    assert torch.equal(LatentDataset(tmp_path).batch([2]).latents[0], sample(2)[0])


def test_a_sample_is_stored_once_and_only_in_the_right_shape(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        writer.append("a", *sample(0))
        with pytest.raises(ValueError, match=r"Sample a .*already"):
            writer.append("a", *sample(0))
        with pytest.raises(ValueError, match=r"Sample b .*\(16, 3, 4, 6\).*\(16, 2, 4, 6\)"):
            writer.append("b", torch.zeros(16, 3, 4, 6), StartImage(torch.zeros(1, 16, 1, 4, 6)))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"width": 64}, "width 48"), ({"fps": 12.0}, "fps 24.0"), ({"vae_sha256": "bb"}, "vae_sha256 aa")],
)
def test_a_dataset_is_not_continued_with_other_settings(tmp_path: Path, change: dict[str, object], named: str) -> None:
    write(tmp_path, range(1))
    with pytest.raises(DatasetError, match=named):
        LatentWriter(tmp_path, index(**change))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        LatentDataset(tmp_path)
    write(tmp_path, range(3))
    shard = tmp_path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DatasetError, match=r"shard-00000\.safetensors.*truncated"):
        LatentDataset(tmp_path)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(DatasetError, match=r"shard-00000\.safetensors.*header"):
        LatentDataset(tmp_path)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"shard-00000\.safetensors.*missing"):
        LatentDataset(tmp_path)


def test_a_shard_of_another_geometry_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(1))
    shard = tmp_path / "shard-00000.safetensors"
    save_file({"latents": torch.zeros(1, 16, 3, 4, 6), "image_latents": torch.zeros(1, 16, 1, 4, 6)}, shard)
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    content["shards"][0]["bytes"] = shard.stat().st_size
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"shard-00000\.safetensors.*\(1, 16, 3, 4, 6\).*\(1, 16, 2, 4, 6\)"):
        LatentDataset(tmp_path)


def test_an_unknown_or_broken_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"frames": 5')
    with pytest.raises(DatasetError, match=r"dataset\.json .*read"):
        LatentDataset(tmp_path)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    with pytest.raises(DatasetError, match="no samples"):
        LatentDataset(tmp_path)


def test_numbers_out_of_range_and_pickling(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    data = pickle.loads(pickle.dumps(LatentDataset(tmp_path)))
    assert torch.equal(data.batch([1]).latents[0], sample(1)[0])
    for wrong in (-1, 2):
        with pytest.raises(IndexError, match="has 2 samples"):
            data.batch([wrong])

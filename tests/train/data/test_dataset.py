import codecs
import json
import math
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train.data.dataset_writer as dataset_writer
from magicdistill_core.families.base import StartImage
from magicdistill_core.safetensors_file import write_safetensors
from train.data import dataset
from train.data.contents import Source
from train.data.dataset import LatentDataset
from train.data.dataset_index import Content, DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter

SHAPE = (16, 2, 4, 6)
CLIP = Source("clip", Content(bytes=1, sha256="00"))


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


@pytest.mark.usefixtures("two_a_shard")
@pytest.mark.parametrize("held", [True, False])
def test_a_small_dataset_is_read_from_its_files_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    write(tmp_path, range(5))
    # As large as the samples in fp32, or one byte less.
    size = 5 * 4 * (16 * 2 * 4 * 6 + 16 * 4 * 6)
    monkeypatch.setattr(dataset, "_HELD_BYTES", size - (not held))
    data = LatentDataset(tmp_path)
    first = data.batch([4, 0, 3])
    for shard in tmp_path.glob("shard-*.safetensors"):
        shard.unlink()
    if not held:
        with pytest.raises(DatasetError, match=r"shard-0000\d"):
            data.batch([4, 0, 3])
        return
    again = data.batch([4, 0, 3])
    assert torch.equal(again.latents, first.latents)
    assert torch.equal(again.image_latents, first.image_latents)
    # The shard of sample 2 holds sample 3 too, so it was read; that of sample 1 holds sample 0.
    assert torch.equal(data.latents([1, 2])[1], sample(2)[0])


@pytest.mark.usefixtures("two_a_shard")
def test_a_dataset_that_takes_much_of_the_free_memory_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, range(3))
    monkeypatch.setattr(dataset, "free_bytes", lambda device: 1000)
    data = LatentDataset(tmp_path)
    data.latents([0])
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(DatasetError, match="shard-00000"):
        data.latents([0])


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
    writer.finish_source(CLIP)
    del writer  # killed before the last shard and the source were written
    with LatentWriter(tmp_path, index()) as again:
        assert [f"clip#{n}" in again for n in range(3)] == [True, True, False]
        assert not again.finished(CLIP)
        again.append("clip#2", *sample(2))
        again.finish_source(CLIP)
    with LatentWriter(tmp_path, index()) as third:
        assert third.finished(CLIP)
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


@pytest.mark.parametrize(("value", "count"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite")])
@pytest.mark.parametrize("key", ["latents", "image_latents"])
def test_a_sample_that_is_not_finite_is_named(tmp_path: Path, key: str, value: float, count: str) -> None:
    """Earlier versions stored such samples."""
    write(tmp_path, range(4))
    shard = tmp_path / "shard-00000.safetensors"
    tensors = load_file(shard)
    tensors[key][2, 5, 0, 1, 1] = value
    write_safetensors(shard, tensors, {})
    data = LatentDataset(tmp_path)
    assert data.batch([0, 1, 3]).latents.isfinite().all()
    with pytest.raises(DatasetError, match=rf"clip#2.*{key} .*{count}.*row 2 of shard-00000"):
        data.batch([1, 2])


def test_a_sum_that_overflows_is_no_error(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        writer.append("large", torch.full(SHAPE, 3e38), StartImage(torch.zeros(1, 16, 1, 4, 6)))
    assert LatentDataset(tmp_path).latents([0]).max() == torch.tensor(3e38)


def test_a_dataset_may_be_larger_than_the_address_space(tmp_path: Path) -> None:
    """The system limits a process to 3 GB more than it has, and the dataset has 16 GB (of holes)."""
    rows, shards = 30, 60
    shapes = {"latents": (rows, 16, 33, 68, 120), "image_latents": (rows, 16, 1, 68, 120)}
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    listed = []
    for number in range(shards):
        path = tmp_path / f"shard-{number:05d}.safetensors"
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        samples = [f"{number}_{row}#0" for row in range(rows)]
        listed.append({"file": path.name, "bytes": path.stat().st_size, "samples": samples})
    made = index(frames=129, height=544, width=960, dtype="float16").model_dump() | {"shards": listed}
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**9, before[1]))
    try:
        data = LatentDataset(tmp_path)
        numbers = [row * shards for row in range(rows)]
        assert all(not data.latents([number]).any() for number in numbers)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(data) == rows * shards


def test_a_dataset_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(1))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 3}))
    with pytest.raises(DatasetError, match="Update"):
        LatentDataset(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"frames": "many"}', "\xff"])
def test_a_damaged_index_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="cannot be read") as raised:
        LatentDataset(tmp_path)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_an_index_saved_by_an_editor_of_windows_is_read(tmp_path: Path) -> None:
    write(tmp_path, range(1))
    path = tmp_path / "dataset.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(LatentDataset(tmp_path)) == 1

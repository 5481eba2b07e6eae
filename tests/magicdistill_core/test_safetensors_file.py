import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.errors import CheckpointError
from magicdistill_core.safetensors_file import read_metadata, read_tensors, write_safetensors
from tests.makers import file_size_limit


def test_a_full_disk_is_reported_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.zeros(4)}, {})
    before = path.read_bytes()
    with file_size_limit(1000), pytest.raises(CheckpointError, match=r"a\.safetensors .*written .*disk"):
        write_safetensors(path, {"a": torch.zeros(4000)}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"b\.safetensors .*written .*disk"):
        write_safetensors(tmp_path / "file" / "b.safetensors", {"a": torch.zeros(4)}, {})


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.ones(2)}, {"k": "v"})
    with pytest.raises(TypeError):
        write_safetensors(path, {"x": torch.zeros(2)}, {"k": 1})  # type: ignore[dict-item]
    assert torch.equal(read_tensors(path)[0]["x"], torch.ones(2))
    assert read_metadata(path) == {"k": "v"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for count in range(0, 4096, 8):
        save_file({"x": torch.zeros(1)}, path, {"pad": "p" * count})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"  # protocol 2, as torch's old files begin
    assert read_metadata(path)["pad"].startswith("p")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 8) + b"not json" + bytes(64))
    with pytest.raises(CheckpointError, match=r"a\.safetensors .*damaged"):
        read_metadata(path)
    with pytest.raises(CheckpointError, match=r"none\.safetensors .*exist"):
        read_metadata(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: b"", "0 bytes contain no complete header"),
        (lambda data: data[:40], "40 bytes contain no complete header"),
        (lambda data: b"<html><body>Not found</body></html>", "35 bytes contain no complete header"),
        (lambda data: data[:8] + b"x" * (len(data) - 8), "not a table of tensors"),
        (lambda data: struct.pack("<Q", 100_000) + b"[" * 100_000, "not a table of tensors"),
        (lambda data: data[:-4], "it has .* bytes, but its header describes"),
        (lambda data: data + b"more", "it has .* bytes, but its header describes"),
    ],
)
def test_damage_is_described_by_sizes(tmp_path: Path, damage: Callable[[bytes], bytes], named: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors .*{named}.*damaged") as refused:
        read_tensors(path)
    assert not re.search("deserializ|Error while|buffer", str(refused.value))

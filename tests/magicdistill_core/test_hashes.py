import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.diffusers_folder import WEIGHTS
from magicdistill_core.errors import CheckpointError
from magicdistill_core.hashes import file_sha256, weights_sha256


def transformer(folder: Path) -> None:
    """Make a folder with the files of a saved transformer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"in_channels": 33}')
    save_file({"x_embedder.proj.weight": torch.ones(2)}, folder / WEIGHTS)


def test_a_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == weights_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_folders_hash_is_that_of_its_files(tmp_path: Path) -> None:
    transformer(tmp_path / "a")
    transformer(tmp_path / "b")
    assert weights_sha256(tmp_path / "a") == weights_sha256(tmp_path / "b")
    file = tmp_path / "b" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert weights_sha256(tmp_path / "a") != weights_sha256(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"/c .*exist"):
        weights_sha256(tmp_path / "c")


def pipeline(folder: Path) -> Path:
    """Make a pipeline folder: a transformer folder and `model_index.json`."""
    transformer(folder / "transformer")
    (folder / "model_index.json").write_text('{"_class_name": "HunyuanVideoPipeline"}')
    return folder


def listed(*files: Path) -> str:
    """Compute the hash of a folder independently; existing recipes hold hashes of this form."""
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def test_a_pipelines_hash_is_that_of_its_transformer(tmp_path: Path) -> None:
    first, second = pipeline(tmp_path / "a"), pipeline(tmp_path / "b")
    inner = first / "transformer"
    assert weights_sha256(first) == weights_sha256(inner) == listed(inner / "config.json", inner / WEIGHTS)
    # Another variant is not read, so it does not change the hash. The other parts of the pipeline do not either.
    (second / "transformer" / WEIGHTS.replace(".safe", ".fp16.safe")).write_bytes(b"x")
    (second / "model_index.json").write_text("{}")
    assert weights_sha256(first) == weights_sha256(second)
    for name in ("config.json", WEIGHTS):
        file = second / "transformer" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b" ")
        assert weights_sha256(first) != weights_sha256(second)
        file.write_bytes(whole)

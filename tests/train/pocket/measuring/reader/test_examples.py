"""The frames for the reader's training: what the folder holds, and how it is continued."""

import json
from pathlib import Path

import pytest
import torch

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.render import portrait_clip
from train.pocket.dataset import HELD_OUT_SEED
from train.pocket.measuring.reader import examples
from train.pocket.measuring.reader.examples import DRAWN_SEED, KINDS, SEEN_SEED, WHOLE, Examples, write_examples

from ..linear_vae import LinearVae


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(examples, "load_vae", lambda path, device: LinearVae())
    monkeypatch.setattr(examples, "_SHARD_CLIPS", 2)
    return tmp_path / "examples"


def equal(first: Examples, second: Examples) -> bool:
    return all(torch.equal(value, vars(second)[name]) for name, value in vars(first).items())


def test_examples_are_whole_seen_and_broken_frames(folder: Path, taehv_file: Path) -> None:
    counted: list[tuple[int, int]] = []
    made = write_examples(folder, 0, 3, 3, taehv_file, lambda done, total: counted.append((done, total)))
    assert counted == [(2, 6), (3, 6), (5, 6), (6, 6)]
    whole = made.kinds == WHOLE
    assert made.seeds[~made.seen].unique().tolist() == [DRAWN_SEED, DRAWN_SEED + 1, DRAWN_SEED + 2]
    assert made.seeds[made.seen].unique().tolist() == [SEEN_SEED, SEEN_SEED + 1, SEEN_SEED + 2]
    assert made.seeds.max() < HELD_OUT_SEED
    assert made.seen[~whole].all()
    assert made.visible[whole].eq(0).all()
    # Even people are broken in the latents, odd ones are painted.
    for kind, seed in zip(made.kinds[~whole].tolist(), made.seeds[~whole].tolist(), strict=True):
        assert (KINDS[kind] == "broken latents") == (seed % 2 == 0)
    assert made.visible[~whole].max() > 0.05
    drawn = int((~made.seen).nonzero()[0])
    clip = portrait_clip(int(made.seeds[drawn]))
    assert torch.equal(made.frames[drawn], clip[made.times[drawn]])
    # What was seen is what the VAE shows: cells of the mean colour.
    seen = int((made.seen & whole).nonzero()[0])
    assert made.frame(seen).diff(dim=-1).abs().mean() < made.frame(drawn).diff(dim=-1).abs().mean()


def test_a_killed_command_continues(folder: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = write_examples(folder, 0, 2, 3, taehv_file)
    lost = sorted(folder.glob("*.safetensors"))[0]
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert equal(write_examples(folder, 0, 2, 3, taehv_file), once)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}.items()
    assert len(write_examples(folder, 0, 2, 5, taehv_file)) == len(once) + 6


def test_a_folder_of_another_vae_is_refused(folder: Path, taehv_file: Path) -> None:
    write_examples(folder, 0, 1, 1, taehv_file)
    with pytest.raises(ConfigError, match=r"another seed\."):
        write_examples(folder, 1, 1, 1, taehv_file)
    index = folder / "examples.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae_sha256": "0"}))
    with pytest.raises(ConfigError, match=r"another vae_sha256\. .*another run folder"):
        write_examples(folder, 0, 1, 1, taehv_file)

"""Folders that diffusers itself has written."""

import json
from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.diffusers_folder import WEIGHTS, weight_files
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import CONCAT, TEXT_ONLY
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from tests.makers import hunyuan_shape, seeded_network


def network(in_channels: int = 33) -> torch.nn.Module:
    return seeded_network(hunyuan_shape(in_channels=in_channels), CONCAT if in_channels == 33 else TEXT_ONLY)


@pytest.mark.parametrize("inner", ["", "transformer"])
@pytest.mark.parametrize("shard", ["10GB", "1MB"])
def test_saved_folders_are_read_whole_or_in_shards(tmp_path: Path, shard: str, inner: str) -> None:
    made = network()
    made.save_pretrained(tmp_path / inner, max_shard_size=shard)
    made.save_pretrained(tmp_path / inner, variant="fp16")  # a second variant next to it, which must not be mixed in
    found = load_checkpoint(tmp_path)
    expected = diffusers_to_file(HUNYUAN_VIDEO, made.state_dict())
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[key], expected[key]) for key in expected)
    assert (len(weight_files(tmp_path)) > 1) == (shard == "1MB")


def test_a_missing_shard_and_a_damaged_index_are_named(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path, max_shard_size="1MB")
    gone = weight_files(tmp_path)[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"1 of the \d files.*missing.*{gone.name}"):
        load_checkpoint(tmp_path)
    (tmp_path / f"{WEIGHTS}.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("said", "mode"), [("token_replace", "token_replace"), (None, None)])
def test_the_image_mode_is_read_from_the_configuration(tmp_path: Path, said: str | None, mode: str | None) -> None:
    network(in_channels=16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_condition_type": said}))
    found = load_checkpoint(tmp_path)
    assert found.i2v_mode == mode
    if mode is None:
        with pytest.raises(CheckpointError, match=r" 16 .*i2v_mode=token_replace or none"):
            found.family()
        assert found.family("none").i2v_mode == "none"
    else:
        assert found.family().kept_frames == 1
        with pytest.raises(CheckpointError, match=r"i2v_mode 'token_replace'.*i2v_mode .*'none'"):
            found.family("none")

"""Runs over several datasets of different sizes."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from magicdistill_core.errors import ConfigError, MagicDistillError
from magicdistill_core.families.base import StartImage
from train.config.reading import parse_config
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetIndex
from train.data.part_writer import PartWriter
from train.methods.draws import Draws
from train.run.mixture import Member, Mixture, check_mixed, member_samples
from train.run.preflight import check_inputs

Config = Callable[..., dict]


def dataset(folder: Path, height: int, width: int, frames: int = 5, count: int = 6, **settings: object) -> Path:
    index = DatasetIndex(frames=frames, height=height, width=width, fps=24, vae_sha256="0" * 64, dtype="float32")
    generator = torch.Generator().manual_seed(height)
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    with PartWriter(folder, index.model_copy(update=settings), "1of1") as writer:
        for number in range(count):
            latent = torch.randn(shape, generator=generator)
            writer.append(f"{number // 2}.mp4#{number}", latent, StartImage(latent[None, :, :1]))
    return folder


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    data = [LatentDataset(dataset(tmp_path / str(height), height, 32)) for height in (32, 48)]
    return [Member(data[0], [0, 1, 2]), Member(data[1], list(range(6)))]


def test_datasets_are_drawn_by_weight_and_each_in_its_own_order(members: list[Member]) -> None:
    drawn = [Mixture(members, [3, 1], Draws(7)).of(update) for update in range(400)]
    heights = [member.dataset.height for member, _ in drawn]
    assert 260 < Counter(heights)[32] < 340
    for height in (32, 48):
        assert [turn for member, turn in drawn if member.dataset.height == height] == list(range(heights.count(height)))
    # Without weights every sample counts alike: the second dataset has twice as many.
    even = Counter(Mixture(members, None, Draws(7)).of(update)[0].dataset.height for update in range(600))
    assert 350 < even[48] < 450


def test_a_draw_depends_on_the_seed_and_the_update_alone(members: list[Member]) -> None:
    forward, again, other = (Mixture(members, None, Draws(seed)) for seed in (7, 7, 8))
    expected = {update: forward.of(update) for update in range(-30, 60)}
    assert {update: again.of(update) for update in reversed(range(-30, 60))} == expected
    assert {update: other.of(update) for update in range(-30, 60)} != expected
    warmup = [expected[update] for update in range(-30, 0)]
    for member in members:
        turns = [turn for drawn, turn in warmup if drawn is member]
        assert turns == list(range(-len(turns), 0))


def test_one_dataset_is_read_as_before(members: list[Member]) -> None:
    mixture = Mixture(members[:1], None, Draws(7))
    assert [mixture.of(update)[1] for update in (-3, 0, 5)] == [-3, 0, 5]


def rounds(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "time", "gpu", "memory")
    return [
        {k: v for k, v in line.items() if not any(word in k for word in timed)} for line in lines if "event" not in line
    ]


def test_a_run_over_two_sizes_resumes_exactly_and_agrees_on_two_processes(
    tmp_path: Path, tiny_config: Config, live: Callable
) -> None:
    first = dataset(tmp_path / "a", 32, 32, count=8)
    others = [str(dataset(tmp_path / "b", 48, 32, count=8)), str(dataset(tmp_path / "c", 32, 32, frames=9, count=8))]
    data = {"dataset": str(first), "mixed": others, "micro_batch": 1, "accumulation": 2, "held_out": 0}

    def config(name: str, **changes: object) -> dict:
        return tiny_config(tmp_path / name, updates=4, data=data) | {"checkpoint": {"every": 2, "keep": 2}} | changes

    whole = live(config("whole"), processes=2)
    assert set(whole.codes) == {0}, whole.said
    part = live(config("part", updates=2), processes=2)
    assert set(part.codes) == {0}, part.said
    rest = live(config("part"), "--resume", processes=2)
    assert set(rest.codes) == {0}, rest.said
    assert len(rounds(tmp_path / "whole")) == 4
    assert rounds(tmp_path / "part") == rounds(tmp_path / "whole")
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert facts["samples"] == 24


def test_datasets_that_do_not_belong_together_are_refused(tmp_path: Path, tiny_config: Config) -> None:
    first = LatentDataset(dataset(tmp_path / "a", 32, 32))
    for name, value in (("fps", 30.0), ("vae_sha256", "1" * 64)):
        other = LatentDataset(dataset(tmp_path / name, 48, 32, **{name: value}))
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            check_mixed(first, [other])
    with pytest.raises(ConfigError, match="twice"):
        check_mixed(first, [first])
    data = {"dataset": str(tmp_path / "a"), "mixed": [str(tmp_path / "fps")]}
    with pytest.raises(ConfigError, match="fps"):
        check_inputs(parse_config(tiny_config(tmp_path / "run", data=data), "test"), resume=False)
    for wrong in ({"weights": [1, 2, 3]}, {"weights": [1, 0]}, {"captions": True}):
        with pytest.raises((ConfigError, ValidationError), match="data"):
            parse_config(tiny_config(tmp_path / "run", data=data | wrong), "test")


def test_a_held_out_video_is_held_out_of_every_dataset(members: list[Member]) -> None:
    assert member_samples(members[1].dataset, {"0.mp4", "7.mp4"}) == [2, 3, 4, 5]
    with pytest.raises(MagicDistillError, match="held-out"):
        member_samples(members[1].dataset, {"0.mp4", "1.mp4", "2.mp4"})

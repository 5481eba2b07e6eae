"""The check of captions: models that obey, that ignore their captions, and that cannot be checked.

Clips carry their true motion in their colours, and the reader reads these colours, so every share is known.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.hashes import file_sha256
from magicdistill_core.lora_file import save_lora
from magicdistill_core.pocket.motion import Direction
from magicdistill_core.pocket.vocabulary import DIRECTIONS, WORDS, caption_of, prompt_of
from tests.makers import random_prompt
from train.pocket import check_captions as checking
from train.pocket.check_captions import RENDERED, CaptionedModel, check_captions, load_captioned
from train.pocket.dataset import HELD_OUT_SEED, to_unit_frames
from train.pocket.latents import FIRST_SEED
from train.pocket.measuring.obeyed import WHOLE
from train.pocket.measuring.reader.quantities import MOTION

from .measuring.linear_vae import LinearVae
from .measuring.motions import true_motion

# The quantity that each colour shows, and the value that is black.
COLOURS = (("yaw", -0.5), ("mouth", 0.0), ("blink", 0.0))
ALWAYS = Direction("left", speaks=True, blinks=True)
CLIPS = 3


def painted(motion: Tensor) -> Tensor:
    """A clip of flat pictures whose colours are the motion: `[T, 16, 16, 3]`, uint8."""
    values = torch.stack([motion[:, MOTION.index(name)] - black for name, black in COLOURS], dim=-1)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)[:, None, None].expand(-1, 16, 16, -1)


class ColourReader:
    """Reads the motion from the colours."""

    def read(self, frames: Tensor) -> SimpleNamespace:
        motion = torch.zeros(*frames.shape[:2], len(MOTION))
        for colour, (name, black) in enumerate(COLOURS):
            motion[..., MOTION.index(name)] = frames[:, :, colour].mean(dim=(-2, -1)) + black
        return SimpleNamespace(motion=motion)


def model(name: str, file: Path, teacher_file: Path, prompts: dict[Direction, NullPrompt]) -> CaptionedModel:
    checkpoint = load_checkpoint(teacher_file)
    assert checkpoint.recipe is not None
    return CaptionedModel(name, file, checkpoint, checkpoint.recipe, prompts)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Replaces renderer, VAE, reader and sampler. A sampled clip does what its prompt says."""
    calls: dict[str, list[Any]] = {"seeds": [], "noise": [], "steps": []}

    def render_clips(
        seeds: Sequence[int], frames: int, size: int, processes: int, directions: Sequence[Direction]
    ) -> Iterator[Tensor]:
        calls["seeds"].append(list(seeds))
        yield from map(painted, true_motion(seeds, directions))

    def sample_each(
        checkpoint: object,
        recipe: object,
        steps: int,
        images: Tensor,
        prompts: Sequence[NullPrompt],
        noise: Sequence[int],
        advance: Callable[[int], None],
    ) -> Tensor:
        calls["noise"] += noise
        calls["steps"].append(steps)
        known = {float(prompt_of(direction).text_states.sum()): direction for direction in DIRECTIONS}
        told = [known[float(prompt.text_states.sum())] for prompt in prompts]
        clips = torch.stack([painted(motion) for motion in true_motion(range(len(told)), told)])
        latents = LinearVae().encode(to_unit_frames(clips))
        assert images.shape == latents[:, :, :1].shape
        return latents

    monkeypatch.setattr(checking, "render_clips", render_clips)
    monkeypatch.setattr(checking, "sample_each", sample_each)
    monkeypatch.setattr(checking, "load_vae", lambda file, device: LinearVae())
    monkeypatch.setattr(checking, "load_reader", lambda file: ColourReader())
    return calls


def test_shares_of_a_model_that_obeys_and_of_one_that_ignores_its_captions(
    tmp_path: Path, teacher_file: Path, asked: dict[str, list[Any]]
) -> None:
    out = tmp_path / "results" / "out.json"
    obeys = model("obeys", teacher_file, teacher_file, {one: prompt_of(one) for one in DIRECTIONS})
    ignores = model("ignores", teacher_file, teacher_file, {one: prompt_of(ALWAYS) for one in DIRECTIONS})
    text = check_captions([obeys, ignores], CLIPS, out, vae_file=teacher_file)
    record = json.loads(out.read_text())
    shares = {name: of["attributes"] for name, of in record["shares"].items()}
    assert list(shares) == [RENDERED, "obeys", "ignores"]
    for name in (RENDERED, "obeys"):
        assert {share["mean"] for share in shares[name].values()} == {1.0}
    chance = {"turn": 1 / 3, "speaks": 1 / 2, "blinks": 1 / 2, WHOLE: 1 / 12}
    assert {name: share["mean"] for name, share in shares["ignores"].items()} == pytest.approx(chance)
    assert record["told"] == [caption_of(one) for one in DIRECTIONS for _ in range(CLIPS)]
    assert set(record["seen"]["ignores"]) == {caption_of(ALWAYS)}
    assert record["models"]["obeys"] == {"sha256": file_sha256(teacher_file), "steps": 28}
    assert asked["steps"] == [28, 28]
    for row in ("| obeys | 1.0000 [0.9026, 1.0000] |", "| ignores | 0.3333 ["):
        assert row in text
    for column in (*WORDS, WHOLE, *(word for said in WORDS.values() for word in said.values())):
        assert f" {column} |" in text


def test_people_are_held_out_and_every_clip_has_its_own_noise(
    tmp_path: Path, teacher_file: Path, asked: dict[str, list[Any]]
) -> None:
    obeys = model("obeys", teacher_file, teacher_file, {one: prompt_of(one) for one in DIRECTIONS})
    check_captions([obeys], CLIPS, tmp_path / "out.json", vae_file=teacher_file)
    thresholds, judged = map(set, asked["seeds"])
    assert len(thresholds) == len(judged) == len(set(asked["noise"])) == CLIPS * len(DIRECTIONS)
    assert not thresholds & judged
    assert min(judged) > HELD_OUT_SEED
    # Datasets begin at this seed. With these people out of their reach, no training has seen them.
    assert min(thresholds) > FIRST_SEED + 3_000_000


def test_two_rows_of_one_name_are_refused(tmp_path: Path, teacher_file: Path, asked: dict[str, list[Any]]) -> None:
    twice = [model("a", teacher_file, teacher_file, {})] * 2
    with pytest.raises(ConfigError, match=r"name a\. Give each model its own name"):
        check_captions(twice, CLIPS, tmp_path / "out.json", vae_file=teacher_file)
    assert not asked["seeds"]


def test_a_lora_is_checked_on_its_base_with_its_own_captions(tmp_path: Path, teacher_file: Path) -> None:
    teacher, lora = load_checkpoint(teacher_file), tmp_path / "lora.safetensors"
    captions = {caption_of(one): random_prompt(4, seed=number) for number, one in enumerate(DIRECTIONS)}
    assert teacher.recipe is not None
    recipe = teacher.recipe.model_copy(
        update={"kind": "generator_lora", "steps": 4, "base_hash": file_sha256(teacher_file)}
    )
    branch = LowRank(torch.ones(1, 640), torch.ones(128, 1), 1.0)
    save_lora(lora, {"single_blocks.0.linear2": branch}, recipe, None, captions)
    found = load_captioned("a", lora, teacher_file)
    assert (found.name, found.recipe.kind, found.recipe.steps) == ("a", "generator", 4)
    changed = found.checkpoint.state["single_blocks.0.linear2.weight"]
    torch.testing.assert_close(changed, teacher.state["single_blocks.0.linear2.weight"] + 1)
    for direction, prompt in found.prompts.items():
        assert torch.equal(prompt.text_states, captions[caption_of(direction)].text_states)


def test_a_model_without_the_vocabulary_is_refused(tmp_path: Path, teacher_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors carries no captions"):
        load_captioned("a", teacher_file)
    teacher, file = load_checkpoint(teacher_file), tmp_path / "some.safetensors"
    assert teacher.recipe is not None
    some = {caption_of(one): random_prompt(4) for one in DIRECTIONS[:-1]}
    save_checkpoint(file, teacher.state, teacher.recipe, teacher.null_prompt, captions=some)
    with pytest.raises(CheckpointError, match=rf"has no caption '{caption_of(DIRECTIONS[-1])}'"):
        load_captioned("a", file)

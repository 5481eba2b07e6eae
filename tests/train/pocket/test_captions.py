"""Captioned portraits: each follows the direction of its seed, and the dataset holds the caption of that direction."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train
from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.lora_file import load_lora
from magicdistill_core.media.video import read_video
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.pocket.render import portrait_clip
from magicdistill_core.pocket.vocabulary import DIRECTIONS, WORDS, caption_of, prompt_of, words_of
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError
from train.data.vae import load_vae
from train.pocket.captions import drawn_direction
from train.pocket.check_captions import check_captions, load_captioned
from train.pocket.dataset import render_clips, to_unit_frames
from train.pocket.latents import FIRST_SEED, write_latents
from train.pocket.measuring.held_out import encode
from train.pocket.measuring.reader.reading import save_reader

from .measuring.reader.tiny import untrained_network

PRESETS = Path(train.__file__).parent / "presets"
FIRST = 700
# From this seed on, 13 portraits follow all 12 captions.
ALL_CAPTIONS = 3339


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "captioned"
    write_latents(folder, 2, first_seed=FIRST, captions=True)
    return folder


def test_directions_are_drawn_by_the_seed_as_in_portraits_without_captions() -> None:
    count = 3000
    drawn = [drawn_direction(seed) for seed in range(count)]
    assert drawn == [drawn_direction(seed) for seed in range(count)]
    found = Counter(word for direction in drawn for word in words_of(direction))
    chances = {"speaks": 0.6, "is silent": 0.4, "blinks": 0.5, "does not blink": 0.5}
    chances |= dict.fromkeys(WORDS["turn"].values(), 1 / 3)
    for word, chance in chances.items():
        assert abs(found[word] / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5, word


def test_clips_follow_their_captions(captioned: Path) -> None:
    data, vae = LatentDataset(captioned), load_vae(VAE)
    assert data.texts is not None
    for number, seed in enumerate((FIRST, FIRST + 1)):
        direction = drawn_direction(seed)
        assert data.texts.caption(number) == caption_of(direction)
        prompt, expected = data.texts.prompt(number), prompt_of(direction)
        assert prompt is not None
        assert torch.equal(prompt.text_states, expected.text_states)
        assert torch.equal(prompt.pooled, expected.pooled)
        clip = portrait_clip(seed, direction=direction)
        latents = encode(vae, to_unit_frames(clip[None]))
        torch.testing.assert_close(data.latents([number]), latents, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(data.image_latents([number]), latents[:, :, :1], atol=1e-2, rtol=1e-2)


def test_a_dataset_grows_without_storing_a_caption_twice_and_stays_captioned(captioned: Path) -> None:
    seeds = range(FIRST, FIRST + 3)
    write_latents(captioned, 3, first_seed=FIRST, captions=True)
    texts = LatentDataset(captioned).texts
    assert texts is not None
    assert [texts.caption(number) for number in range(3)] == [caption_of(drawn_direction(seed)) for seed in seeds]
    assert len(texts.captions) == len(set(texts.captions))
    with pytest.raises(DatasetError, match=r"text encoder .*now: none"):
        write_latents(captioned, 4, first_seed=FIRST)


def test_rendered_portraits_are_refused_because_they_follow_no_captions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="follow no captions"):
        write_latents(tmp_path / "out", 1, portraits=tmp_path, captions=True)
    assert not (tmp_path / "out").exists()


def test_directions_reach_the_clips_in_several_processes() -> None:
    told = [DIRECTIONS[0], DIRECTIONS[-1]]
    for processes in (1, 2):
        clips = list(render_clips([5, 6], 9, 32, processes, directions=told))
        for clip, seed, direction in zip(clips, (5, 6), told, strict=True):
            assert torch.equal(clip, portrait_clip(seed, 9, 32, direction=direction))
            assert not torch.equal(clip, portrait_clip(seed, 9, 32))


@pytest.mark.slow
def test_from_portraits_to_a_checked_four_step_lora_on_the_shipped_teacher(
    tmp_path: Path, live: Callable[..., Any], magicdistill: Callable[..., tuple[int, str, str]]
) -> None:
    """The commands of docs/pocket.md with few clips and two updates."""
    data, teacher = tmp_path / "data", tmp_path / "captioned_teacher.safetensors"
    first, second = tmp_path / "captioned.safetensors", tmp_path / "4step.safetensors"
    tuned, reader = tmp_path / "tuned.safetensors", tmp_path / "reader.safetensors"

    def trained(preset: str, **model: object) -> Path:
        settings = {"updates": 2, "validation": {"every": 0}, "checkpoint": {"every": 2}}
        settings |= {"extends": str(PRESETS / preset), "run": str(tmp_path / preset), "model": model}
        done = live(settings | {"data": {"dataset": str(data), "micro_batch": 2}})
        assert done.codes == [0], done.said[-6000:]
        return tmp_path / preset

    def command(*words: object) -> str:
        status, out, err = magicdistill(*words)
        assert status == 0, err
        return out

    write_latents(data, 13, first_seed=ALL_CAPTIONS, captions=True)
    run = trained("pocket_ti2v_sft.yaml")
    command("export", run, f"--out={teacher}")
    command("export", run, "--format=lora", f"--out={first}")
    run = trained("pocket_ti2v_w2s_4step.yaml", teacher=str(teacher))
    command("export", run, f"--out={tuned}")
    said = command("extract-lora", tuned, f"--base={TEACHER}", "--rank=64", f"--out={second}")
    assert "matrices of rank 64 at most" in said

    shipped = load_checkpoint(TEACHER)
    assert shipped.null_prompt is not None
    for file, kind, steps in ((first, "teacher_lora", 28), (second, "generator_lora", 4)):
        lora = load_lora(file, shipped.shape.hidden)
        assert lora.recipe is not None
        assert lora.null_prompt is not None
        assert (lora.recipe.kind, lora.recipe.steps) == (kind, steps)
        assert lora.captions.keys() == {caption_of(direction) for direction in DIRECTIONS}
        assert torch.equal(lora.null_prompt.text_states, shipped.null_prompt.text_states)

    image, video = tmp_path / "start.png", tmp_path / "video.mp4"
    Image.fromarray(portrait_clip(3, 1)[0].numpy()).save(image)
    told = ("--caption=Turns LEFT, speaks, blinks", f"--out={video}")
    command("sample", second, f"--base={TEACHER}", f"--image={image}", *told)
    assert len(list(read_video(video).frames)) == 17

    save_reader(untrained_network(), reader)
    found = tmp_path / "found.json"
    check_captions([load_captioned("4 steps", second)], 1, found, reader_file=reader)
    record = json.loads(found.read_text())
    assert record["models"]["4 steps"]["steps"] == 4
    assert record["shares"]["4 steps"]["clips"] == len(record["seen"]["4 steps"]) == len(DIRECTIONS)


def test_the_commands_take_their_options(tmp_path: Path, magicdistill: Callable[..., tuple[int, str, str]]) -> None:
    options = ("--captions", "--clips=1", f"--vae={VAE}", f"--out={tmp_path / 'data'}")
    assert magicdistill("pocket", "latents", *options)[0] == 0
    texts = LatentDataset(tmp_path / "data").texts
    assert texts is not None
    assert texts.caption(0) == caption_of(drawn_direction(FIRST_SEED))
    missing = tmp_path / "none.safetensors"
    status, _, err = magicdistill("pocket", "check-captions", f"--model={missing}", f"--out={tmp_path / 'out.json'}")
    assert status == 2
    assert str(missing) in err

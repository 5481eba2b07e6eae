"""Long videos of the trainer: each segment is a video of the model from the last frame of the one before it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, VideoError
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.long_video.making import SEGMENTS_TAG, LongSettings, seed_of
from magicdistill_core.long_video.store import SegmentStore
from magicdistill_core.media.video import read_image, read_tags, read_video
from magicdistill_core.recipe import Recipe
from tests.makers import random_prompt, wan_shape
from train.data.start_images import load_start_images
from train.data.vae import load_vae
from train.networks.network import build_network, load_network
from train.networks.sampling import generate
from train.tools.identity import load_identity
from train.tools.long_sample import LongOptions, sample_long


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def kept(folder: Path, number: int) -> tuple[Tensor, Tensor]:
    """The latents and the last frames of a segment, from 0."""
    store = SegmentStore(folder)
    name = next(folder.glob(f"{number + 1:04d}-*.json"))
    segment, _ = store.find(number, json.loads(name.read_text())["key"])
    assert segment is not None
    return store.latents(segment), store.tail(segment)


def test_each_segment_is_a_video_from_the_last_frame_before_it(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path
) -> None:
    out = tmp_path / "long.mp4"
    made = sample_long(teacher_file, still, out, LongOptions(12 / 24), vae=taehv_file, steps=2, seed=7)
    assert (made.frames, len(made.segments)) == (12, 3)
    assert len(list(read_video(out).frames)) == 12
    checkpoint, vae = load_checkpoint(teacher_file), load_vae(taehv_file)
    network, encoder = load_network(checkpoint), load_start_images(vae, None)
    assert checkpoint.null_prompt is not None
    picture = read_image(still).float()[None] / 255
    for number in range(3):
        start = encoder.encode(picture[:1].permute(0, 3, 1, 2), 5)
        seed = seed_of(LongSettings({}, 24, seed=7), number, 0)
        expected = generate(network, checkpoint.null_prompt, start, 2, few_step_sigmas(2, 5.0), "euler", seed)
        latents, picture = kept(tmp_path / "long.segments", number)
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    record = json.loads((tmp_path / "long.json").read_text())
    assert record == json.loads(read_tags(out)[SEGMENTS_TAG])
    assert record["segments"][0]["prompt"].startswith("null prompt")


def test_wan_continues_several_frames_and_sees_the_portrait(tmp_path: Path, still: Path) -> None:
    torch.manual_seed(0)
    vae_folder, clip_folder = tmp_path / "vae", tmp_path / "image_encoder"
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(vae_folder)
    sizes = {"hidden_size": 1280, "intermediate_size": 32, "num_attention_heads": 16}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=2, patch_size=14, image_size=224)
    CLIPVisionModel(config).save_pretrained(clip_folder)
    network, prompt = build_network(wan_shape(), IMAGE_TO_VIDEO).eval(), random_prompt(tokens=7, pooled_dim=None)
    recipe = Recipe(kind="generator", family="wan", steps=2, shift=5.0, width=32, height=32, frames=13, fps=16.0)
    file, out = tmp_path / "wan.safetensors", tmp_path / "long.mp4"
    save_checkpoint(file, diffusers_to_file(WAN, network.state_dict()), recipe, prompt)
    options = LongOptions(20 / 16, overlap=6, match_colours=False)
    made = sample_long(file, still, out, options, vae=vae_folder, image_encoder=clip_folder, seed=3)
    assert len(made.segments) == 2
    encoder = load_start_images(load_vae(vae_folder), clip_folder)
    portrait = (read_image(still).float() / 255).permute(2, 0, 1)[None]
    _, tail = kept(tmp_path / "long.segments", 0)
    assert len(tail) == 6
    # Of six shared frames, five are of the form 4n + 1: two latent frames are known.
    known = tail[:5].permute(0, 3, 1, 2)[None]
    start = encoder.encode(known[:, 0], 13, known[:, 1:], portrait)
    assert start.known_frames == 2
    mask = IMAGE_TO_VIDEO.condition(start, 4)[0][0, 0, :, 0, 0]
    assert mask.tolist() == [1, 1, 0, 0]
    assert start.features is not None
    torch.testing.assert_close(start.features, encoder.encode(portrait, 13).features)
    seed = seed_of(LongSettings({}, 16, seed=3), 1, 0)
    expected = generate(network, prompt, start, 4, few_step_sigmas(2, 5.0), "euler", seed)
    latents, _ = kept(tmp_path / "long.segments", 1)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_the_command_makes_goes_on_and_refuses(
    tmp_path: Path,
    teacher_file: Path,
    taehv_file: Path,
    still: Path,
    magicdistill: Callable[..., tuple[int, str, str]],
) -> None:
    file, speaks, nods = tmp_path / "told.safetensors", random_prompt(4, seed=5), random_prompt(4, seed=6)
    teacher = load_checkpoint(teacher_file)
    assert teacher.recipe is not None
    captions = {"Speaks": speaks, "Nods": nods}
    save_checkpoint(file, teacher.state, teacher.recipe, teacher.null_prompt, captions=captions)
    given = (file, "--image", still, "--out", tmp_path / "long.mp4", "--vae", taehv_file, "--steps", 1)
    command = ("sample", *given, "--seconds", 0.5, "--device", "cpu")
    told = ("--caption", "speaks", "--caption", "nods")
    status, out, err = magicdistill(*command, *told)
    assert status == 0, err
    assert "segment 3 of 3" in out
    assert "12 frames in 3 segments" in out
    status, out, _ = magicdistill(*command, *told, "--segment-seed", "3=9")
    assert status == 0
    assert out.count("kept from before") == 2
    for wrong, problem in (
        ((*given, "--seconds", 0), "expected more than 0"),
        ((*given, "--seconds", 1e6), "at most 3600"),
        ((*given, *told), "has one text"),
        ((*given, "--seconds", 0.2, *told), "2 captions, but the video has 1 segment"),
        ((*given, "--seconds", 1, "--caption", "sings"), "has no caption 'sings'"),
        ((*given, "--seconds", 1, "--segment-seed", "9=1"), "segment 9 does not exist"),
        ((*given, "--seconds", 1, "--overlap", 5), "expected 1 to 4"),
        ((*given, "--seconds", 1, "--min-identity", 0.5), "--identity"),
        ((*given, "--seconds", 1, "--identity", tmp_path), "identity network"),
    ):
        status, _, err = magicdistill("sample", *wrong, "--device", "cpu")
        assert status == 2, wrong
        assert problem in " ".join(err.split())


def test_identity_is_clips_embedding(tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=2, patch_size=14, image_size=56)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    embed = load_identity(tmp_path / "clip")
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert embed(pictures).shape == (3, 16)
    torch.testing.assert_close(embed(pictures)[1:2], embed(pictures[1:2]))
    out = tmp_path / "long.mp4"
    plain = sample_long(teacher_file, still, out, LongOptions(9 / 24), vae=taehv_file, steps=1)
    assert plain.drift.identity is None
    # The segments are there already: only the numbers are new.
    made = sample_long(teacher_file, still, out, LongOptions(9 / 24), vae=taehv_file, steps=1, embed=embed)
    assert [entry["made"] for entry in made.segments] == [False, False]
    assert made.drift.identity is not None
    assert -1 <= made.drift.identity <= 1
    with pytest.raises(CheckpointError, match="identity network"):
        load_identity(tmp_path)


def test_a_sound_file_without_sound_is_refused(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path
) -> None:
    options = LongOptions(0.5, sound=still)
    with pytest.raises(VideoError, match=r"still\.png .*sound"):
        sample_long(teacher_file, still, tmp_path / "long.mp4", options, vae=taehv_file, steps=1)

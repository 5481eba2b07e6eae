import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import train.tools.sample
from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, OutputError, VideoError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import unit_to_frames
from magicdistill_core.lora_file import save_lora
from magicdistill_core.media.video import read_image, read_tags, read_video
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.null_prompt import TEMPLATE_ENTRY, null_prompt_tensors
from magicdistill_core.recipe import METADATA_KEY, Recipe
from tests.makers import random_prompt
from train.data.vae import load_vae
from train.networks.network import load_network
from train.networks.sampling import generate, sample_latents
from train.tools.sample import SAMPLING_TAG, sample_file, usual_precision


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def euler_by_diffusers(teacher: Path, image_latent: torch.Tensor, frames: int, seed: int) -> torch.Tensor:
    """Four Euler steps at shift 5 with the diffusers scheduler; only the weights' key map is our code."""
    checkpoint = load_checkpoint(teacher)
    network = load_network(checkpoint)
    assert checkpoint.null_prompt is not None
    text, pooled = checkpoint.null_prompt.text_states, checkpoint.null_prompt.pooled
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = torch.randn(1, 16, frames, 4, 4, generator=torch.Generator().manual_seed(seed))
    image = torch.cat([image_latent, torch.zeros(1, 16, frames - 1, 4, 4)], dim=2)
    mask = torch.zeros(1, 1, frames, 4, 4)
    mask[:, :, 0] = 1
    latents = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = network(
                hidden_states=torch.cat([latents, image, mask], dim=1),
                timestep=timestep.expand(1),
                encoder_hidden_states=text,
                encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool),
                pooled_projections=pooled,
                return_dict=False,
            )[0]
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


def test_generate_equals_the_diffusers_scheduler(teacher_file: Path) -> None:
    checkpoint = load_checkpoint(teacher_file)
    assert checkpoint.null_prompt is not None
    image_latent = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    network = load_network(checkpoint)
    seen: list[float] = []
    mine = generate(
        network,
        checkpoint.null_prompt,
        StartImage(image_latent),
        2,
        few_step_sigmas(4, 5.0),
        "euler",
        seed=3,
        callback=lambda state: seen.append(round(1000 * state.sigma, 1)),
    )
    assert torch.allclose(mine, euler_by_diffusers(teacher_file, image_latent, 2, 3), atol=1e-5)
    assert seen == [1000.0, 937.5, 833.3, 625.0]


def test_the_noise_equals_comfyuis_and_renoise_draws_new_noise() -> None:
    sigmas = few_step_sigmas(2, 1.0)

    def still(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    shape = (1, 16, 2, 4, 4)
    got = sample_latents(still, shape, sigmas, "euler", 42, "cpu")
    # The same draw as in ComfyUI's prepare_noise.
    assert torch.equal(got, torch.randn(shape, generator=torch.manual_seed(42), dtype=torch.float32))
    fresh = sample_latents(still, shape, sigmas, "renoise", 42, "cpu")
    assert torch.equal(fresh, sample_latents(still, shape, sigmas, "renoise", 42, "cpu"))
    # x0 is the noise itself here, mixed half and half with other noise: independent, so of variance 1/2.
    assert float(fresh.var()) == pytest.approx(0.5, abs=0.1)


def test_a_file_and_a_still_give_a_tagged_video(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path
) -> None:
    out = tmp_path / "deep" / "out.mp4"
    settings = sample_file(teacher_file, still, out, vae=taehv_file, steps=4, seed=7)
    assert (settings.steps, settings.shift, settings.frames, settings.fps) == (4, 5.0, 5, 24.0)
    video = read_video(out)
    frames = torch.stack(list(video.frames))
    assert (video.fps, frames.shape) == (24.0, (5, 32, 32, 3))
    vae = load_vae(taehv_file)
    image = read_image(still).permute(2, 0, 1)[None].float() / 255
    latents = euler_by_diffusers(teacher_file, vae.encode_image(image), 2, 7)
    expected = unit_to_frames(vae.decode(latents))
    assert expected.float().std() > 20  # there is something to compare
    write_video(tmp_path / "expected.mp4", expected, 24.0)  # the same coding loss
    coded = torch.stack(list(read_video(tmp_path / "expected.mp4").frames))
    assert (frames.float() - coded.float()).abs().mean() < 1
    tags = read_tags(out)
    assert Recipe.from_metadata(tags) == load_checkpoint(teacher_file).recipe
    assert METADATA_KEY in tags
    said = json.loads(tags[SAMPLING_TAG])
    assert (said["seed"], said["steps"], said["file"]) == (7, 4, teacher_file.name)


def test_a_caption_of_the_file_or_a_prompt_file_is_the_text_of_the_video(
    tmp_path: Path,
    teacher_file: Path,
    taehv_file: Path,
    still: Path,
    monkeypatch: pytest.MonkeyPatch,
    magicdistill: Callable[..., tuple[int, str, str]],
) -> None:
    file, speaks = tmp_path / "told.safetensors", random_prompt(4, seed=5)
    teacher = load_checkpoint(teacher_file)
    assert teacher.recipe is not None
    # A file may carry captions and no null prompt.
    save_checkpoint(file, teacher.state, teacher.recipe, None, captions={"Speaks": speaks})
    save_file(null_prompt_tensors(speaks), tmp_path / "speaks.safetensors")
    used = []

    def noted(network: torch.nn.Module, prompt: NullPrompt, *more: Any) -> Tensor:
        used.append(prompt)
        return generate(network, prompt, *more)

    monkeypatch.setattr(train.tools.sample, "generate", noted)
    command = ("sample", file, "--image", still, "--out", tmp_path / "out.mp4", "--vae", taehv_file, "--steps", 1)
    for told in (("--caption", "speaks"), ("--prompt", tmp_path / "speaks.safetensors")):
        status, _, err = magicdistill(*command, *told, "--device", "cpu")
        assert status == 0, err
    assert all(torch.equal(prompt.text_states, speaks.text_states) for prompt in used)
    assert len(used) == 2
    status, _, err = magicdistill(*command, "--caption", "sings")
    assert status == 2
    assert "has no caption 'sings'. Its captions are: Speaks" in err
    status, _, err = magicdistill(*command, "--caption", "speaks", "--prompt", tmp_path / "speaks.safetensors")
    assert status == 2
    assert "--prompt and --caption are two texts" in err
    sample_file(file, still, tmp_path / "a.mp4", vae=taehv_file, steps=1, caption="speaks")
    assert json.loads(read_tags(tmp_path / "a.mp4")[SAMPLING_TAG])["caption"] == "speaks"


@pytest.mark.parametrize(
    ("trained", "given", "said"),
    [
        ("hunyuan_i2v_concat", None, "its null prompt does not show this image"),
        ("hunyuan_i2v_concat", "hunyuan_video", "trained with the prompts of HunyuanVideo-I2V concat"),
        ("hunyuan_i2v_concat", "hunyuan_i2v_concat", None),
        ("hunyuan_video", None, None),
        (None, "hunyuan_i2v_concat", None),
    ],
)
def test_prompts_that_were_not_encoded_as_in_the_training_are_said(
    trained: str | None,
    given: str | None,
    said: str | None,
    tmp_path: Path,
    teacher_file: Path,
    taehv_file: Path,
    still: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher, file = load_checkpoint(teacher_file), tmp_path / "told.safetensors"
    assert teacher.recipe is not None
    recipe = Recipe.model_validate(teacher.recipe.model_dump() | {"prompt_template": trained})
    save_checkpoint(file, teacher.state, recipe, random_prompt())
    prompt = None
    if given is not None:
        prompt = tmp_path / "prompt.safetensors"
        save_file(null_prompt_tensors(random_prompt(seed=5)), prompt, {TEMPLATE_ENTRY: given})
    with caplog.at_level("WARNING"):
        sample_file(file, still, tmp_path / "out.mp4", vae=taehv_file, steps=1, prompt=prompt)
    notes = [record.getMessage() for record in caplog.records if "trained with" in record.getMessage()]
    assert [said in note for note in notes if said is not None] == ([] if said is None else [True])
    assert len(notes) == (said is not None)


def test_settings_come_from_the_recipe_unless_given(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path
) -> None:
    calls: list[int] = []
    settings = sample_file(
        teacher_file,
        still,
        tmp_path / "a.mp4",
        vae=taehv_file,
        width=48,
        frames=1,
        shift=2.0,
        precision="bf16",
        callback=lambda state: calls.append(state.step),
    )
    assert (settings.steps, len(calls)) == (28, 28)
    assert torch.stack(list(read_video(tmp_path / "a.mp4").frames)).shape == (1, 32, 48, 3)
    tags = json.loads(read_tags(tmp_path / "a.mp4")[SAMPLING_TAG])
    assert (tags["shift"], tags["width"], tags["frames"]) == (2.0, 48, 1)


def test_the_default_precision_follows_from_the_device(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.dtype] = []

    def network(checkpoint: object, dtype: torch.dtype, device: object) -> torch.nn.Module:
        used.append(dtype)
        return load_network(checkpoint, dtype, device)

    monkeypatch.setattr(train.tools.sample, "load_network", network)
    for precision in (None, "bf16"):
        sample_file(teacher_file, still, tmp_path / "a.mp4", vae=taehv_file, steps=1, precision=precision)
    assert used == [torch.float32, torch.bfloat16]
    assert [usual_precision(device) for device in ("cpu", torch.device("cuda:1"))] == ["fp32", "bf16"]


def test_a_lora_is_sampled_with_its_base_only(
    tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magicdistill_core.hashes import file_sha256

    # Before encoding: a codec turns one differently rounded pixel into a different picture.
    video: dict[str, Tensor] = {}

    def keep_frames(path: Path, frames: Tensor, *given: Any, **options: Any) -> None:
        video[path.stem] = frames.float()
        write_video(path, frames, *given, **options)

    monkeypatch.setattr("train.tools.sample.write_video", keep_frames)
    hidden = 128
    generator = torch.Generator().manual_seed(2)
    branch = LowRank(
        torch.randn(4, hidden, generator=generator), torch.randn(hidden, 4, generator=generator), alpha=2.0
    )
    name = "double_blocks.0.img_attn_proj"
    base = load_checkpoint(teacher_file)
    assert base.recipe is not None
    generator_recipe = base.recipe.model_copy(update={"kind": "generator", "steps": 2})
    lora_recipe = generator_recipe.model_copy(
        update={"kind": "generator_lora", "base_hash": file_sha256(teacher_file), "lora_rank": 4, "lora_alpha": 2.0}
    )
    lora = tmp_path / "lora.safetensors"
    save_lora(lora, {name: branch}, lora_recipe)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors .*--base"):
        sample_file(lora, still, tmp_path / "a.mp4", vae=taehv_file)
    with pytest.raises(CheckpointError, match=f"{teacher_file.name} .*no base"):
        sample_file(teacher_file, still, tmp_path / "a.mp4", vae=taehv_file, base=teacher_file)
    sample_file(lora, still, tmp_path / "a.mp4", vae=taehv_file, base=teacher_file)

    state = dict(base.state)
    state[f"{name}.weight"] = state[f"{name}.weight"] + 0.5 * branch.up @ branch.down  # alpha / rank
    merged = tmp_path / "merged.safetensors"
    save_checkpoint(merged, state, generator_recipe, base.null_prompt)
    sample_file(merged, still, tmp_path / "b.mp4", vae=taehv_file)
    sample_file(teacher_file, still, tmp_path / "c.mp4", vae=taehv_file, steps=2)
    assert (video["a"] - video["b"]).abs().max() <= 1  # summed in another order, so a pixel may round differently
    assert (video["a"] - video["c"]).abs().mean() > 1
    assert Recipe.from_metadata(read_tags(tmp_path / "a.mp4")) == generator_recipe

    # A base without a null prompt, and a LoRA that contains one.
    mute = tmp_path / "mute.safetensors"
    save_checkpoint(mute, base.state, base.recipe, None)
    for_mute = lora_recipe.model_copy(update={"base_hash": file_sha256(mute)})
    save_lora(lora, {name: branch}, for_mute, base.null_prompt)
    sample_file(lora, still, tmp_path / "d.mp4", vae=taehv_file, base=mute)
    assert (video["d"] - video["a"]).abs().max() <= 1  # another alignment in memory rounds differently
    save_lora(lora, {name: branch}, lora_recipe)

    other = tmp_path / "other.safetensors"
    save_checkpoint(other, state, base.recipe, base.null_prompt)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors .*sha256.*other\.safetensors"):
        sample_file(lora, still, tmp_path / "a.mp4", vae=taehv_file, base=other)
    fake = tmp_path / "fake.safetensors"
    save_lora(fake, {name: branch}, lora_recipe.model_copy(update={"kind": "fake_lora"}))
    with pytest.raises(CheckpointError, match=r"fake\.safetensors .*fake_lora"):
        sample_file(fake, still, tmp_path / "a.mp4", vae=taehv_file, base=teacher_file)


def test_unusable_inputs_are_refused(tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path) -> None:
    out = tmp_path / "a.mp4"
    with pytest.raises(VideoError, match=r"a\.webm.*\.mp4"):
        sample_file(teacher_file, still, tmp_path / "a.webm", vae=taehv_file)
    with pytest.raises(VideoError, match="multiples of 16"):
        sample_file(teacher_file, still, out, vae=taehv_file, width=33)
    with pytest.raises(VideoError, match="4n"):
        sample_file(teacher_file, still, out, vae=taehv_file, frames=6)
    with pytest.raises(VideoError, match=f"{teacher_file.name} .*PNG, JPEG or WebP"):
        sample_file(teacher_file, teacher_file, out, vae=taehv_file)
    base = load_checkpoint(teacher_file)
    assert base.recipe is not None
    mute = tmp_path / "mute.safetensors"
    save_checkpoint(mute, base.state, base.recipe, None)
    with pytest.raises(CheckpointError, match=r"mute\.safetensors .*null prompt"):
        sample_file(mute, still, out, vae=taehv_file)
    from safetensors.torch import save_file

    plain = tmp_path / "plain.safetensors"
    save_file(base.state, plain)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors .*recipe.*steps, shift, width, height, frames"):
        sample_file(plain, still, out, vae=taehv_file)
    t2v = dict(base.state)
    t2v["img_in.proj.weight"] = t2v["img_in.proj.weight"][:, :16].contiguous()
    save_checkpoint(tmp_path / "t2v.safetensors", t2v, base.recipe, base.null_prompt)
    with pytest.raises(CheckpointError, match="16 input channels"):
        sample_file(tmp_path / "t2v.safetensors", still, out, vae=taehv_file)
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(
    tmp_path: Path, teacher_file: Path, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.setattr(train.tools.sample, "load_weights", lambda *_: pytest.fail("the weights were loaded"))
    for out in (tmp_path / "file" / "x.mp4", tmp_path / "folder.mp4", tmp_path / f"{'x' * 300}.mp4"):
        with pytest.raises(OutputError, match=f"{out.name}|{out.parent}"):
            sample_file(teacher_file, still, out)


def test_condition_layout_is_image_then_mask() -> None:
    image = torch.full((1, 16, 1, 2, 2), 3.0)
    condition = concat_condition(image, 3)
    assert condition.shape == (1, 17, 3, 2, 2)
    assert condition[:, :16, 0].unique().tolist() == [3.0]
    assert condition[:, :16, 1:].unique().tolist() == [0.0]
    assert condition[0, 16, :, 0, 0].tolist() == [1.0, 0.0, 0.0]

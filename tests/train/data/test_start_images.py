"""Start images of Wan 2.1, with gray frames and CLIP features: from videos and stills to data and samples."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.wan import IMAGE_TO_VIDEO, normalised
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.media.video import read_image, read_tags, read_video, resize_crop
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.recipe import Recipe
from tests.makers import random_prompt, wan_shape
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError
from train.data.prepare import prepare
from train.data.start_images import load_start_images
from train.data.vae import load_vae
from train.networks.network import build_network
from train.tools.sample import sample_file

SHAPE = wan_shape()
FRAMES, SIDE = 9, 32
STILL = Path(__file__).parents[3] / "workflows" / "portrait_pocket.jpg"


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan") / "vae"
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("wan") / "image_encoder"
    sizes = {"hidden_size": 1280, "intermediate_size": 32, "num_attention_heads": 16}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=2, patch_size=14, image_size=224)
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompt() -> NullPrompt:
    return random_prompt(tokens=7, pooled_dim=None)


def test_the_image_is_encoded_with_gray_frames_and_features(vae_folder: Path, clip_folder: Path) -> None:
    encoder = load_start_images(load_vae(vae_folder), clip_folder)
    # Of 8 bits, as in every picture: CLIP's processor rounds to them.
    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(3)) / 255
    made = encoder.encode(images, FRAMES)
    model, clip = AutoencoderKLWan.from_pretrained(vae_folder).eval(), CLIPVisionModel.from_pretrained(clip_folder)
    video = torch.cat([images[:, :, None] * 2 - 1, torch.zeros(2, 3, FRAMES - 1, 224, 224)], dim=2)
    processed = CLIPImageProcessor()(images, return_tensors="pt", do_rescale=False).pixel_values
    with torch.no_grad():
        assert torch.allclose(made.latents, normalised(model.encode(video).latent_dist.mode()), atol=1e-5)
        expected = clip.eval()(processed, output_hidden_states=True).hidden_states[-2]
    assert made.features is not None
    assert torch.allclose(made.features, expected, atol=1e-4)


def test_clips_become_data_of_the_family(tmp_path: Path, vae_folder: Path, clip_folder: Path) -> None:
    ground = torch.randint(0, 256, (1, 40, 72, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.cat([ground.roll(2 * n, dims=2) for n in range(2 * FRAMES)]), 16.0)

    def run(out: Path, image_encoder: Path | None) -> None:
        prepare(clip, out, vae_folder, FRAMES, SIDE, SIDE, 16.0, dtype="float32", image_encoder=image_encoder)

    with pytest.raises(CheckpointError, match=r"Wan 2\.1.*CLIP.*--image-encoder"):
        run(tmp_path / "data", None)
    run(tmp_path / "data", clip_folder)
    data = LatentDataset(tmp_path / "data")
    data.check_family(IMAGE_TO_VIDEO)
    window = torch.stack([resize_crop(frame, SIDE, SIDE) for frame in read_video(clip).frames])[FRAMES : 2 * FRAMES]
    unit = frames_to_unit(window)
    encoder = load_start_images(load_vae(vae_folder), clip_folder)
    expected, found = encoder.encode(unit[:, 0], FRAMES), data.start_image([1])
    assert torch.allclose(data.latents([1]), encoder.vae.encode(unit), atol=1e-5)
    assert torch.allclose(found.latents, expected.latents, atol=1e-5)
    assert found.features is not None
    assert expected.features is not None
    assert torch.allclose(found.features, expected.features, atol=1e-4)
    other = tmp_path / "image_encoder"
    CLIPVisionModel.from_pretrained(clip_folder).half().save_pretrained(other)
    with pytest.raises(DatasetError, match="image_encoder_sha256"):
        run(tmp_path / "data", other)


def test_a_still_becomes_the_video_of_diffusers_pipeline(
    tmp_path: Path, vae_folder: Path, clip_folder: Path, prompt: NullPrompt, taehv_file: Path
) -> None:
    torch.manual_seed(5)
    network = build_network(SHAPE, IMAGE_TO_VIDEO).eval()
    sizes = {"width": SIDE, "height": SIDE, "frames": FRAMES, "fps": 16.0}
    recipe = Recipe(kind="generator", family="wan", steps=2, shift=5.0, **sizes)
    file, out = tmp_path / "generator.safetensors", tmp_path / "out.mp4"
    save_checkpoint(file, diffusers_to_file(WAN, network.state_dict()), recipe, prompt)
    with pytest.raises(CheckpointError, match=r"generator\.safetensors .*pocket.*--vae.*Wan 2\.1"):
        sample_file(file, STILL, out)
    with pytest.raises(CheckpointError, match=r"generator\.safetensors .*Wan 2\.1.*hunyuan_video.*--vae"):
        sample_file(file, STILL, out, vae=taehv_file)
    sample_file(file, STILL, out, vae=vae_folder, image_encoder=clip_folder, seed=6)

    image = resize_crop(read_image(STILL).float() / 255, SIDE, SIDE).permute(2, 0, 1)[None]
    squeezed = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "do_rescale": False}
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan.from_pretrained(vae_folder),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=network,
        image_encoder=CLIPVisionModel.from_pretrained(clip_folder),
        image_processor=CLIPImageProcessor(**squeezed),
    )
    pipeline.set_progress_bar_config(disable=True)
    sigmas = few_step_sigmas(2, 5.0)[:-1]
    # The pipeline requests a number of steps from its scheduler, whose levels are not those of the few-step schedule.
    pipeline.scheduler.set_timesteps = lambda *_, **__: FlowMatchEulerDiscreteScheduler.set_timesteps(
        pipeline.scheduler, sigmas=(sigmas / (5 - 4 * sigmas)).tolist()
    )
    text = torch.nn.functional.pad(prompt.text_states, (0, 0, 0, 512 - prompt.text_states.shape[1]))
    noise = torch.randn((1, 16, 3, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(6))
    settings = {"num_frames": FRAMES, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    expected = pipeline(image, height=SIDE, width=SIDE, prompt_embeds=text, latents=noise, **settings).frames
    made = torch.stack(list(read_video(out).frames)).float() / 255
    assert made.shape == (FRAMES, SIDE, SIDE, 3)
    # mp4 is lossy, and worst for noise such as the output of a random network.
    assert (made - expected[0].permute(0, 2, 3, 1)).abs().mean() < 0.03
    assert expected.std() > 0.05
    assert "magicdistill.sampling" in read_tags(out)


def test_unneeded_and_wrong_image_encoders_are_refused(tmp_path: Path, taehv_file: Path, vae_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"HunyuanVideo .*no CLIP features"):
        load_start_images(load_vae(taehv_file), tmp_path)
    with pytest.raises(CheckpointError, match=f"image encoder.*{tmp_path}"):
        load_start_images(load_vae(vae_folder), tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=32, image_size=224)).save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"\(50, 32\), expected \(257, 1280\)"):
        load_start_images(load_vae(vae_folder), tmp_path / "small")

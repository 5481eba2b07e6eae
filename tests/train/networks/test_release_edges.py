"""Samples of HunyuanVideo-I2V, compared with diffusers' pipeline: the image in the noise, and the dropped frames."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.errors import VideoError
from magicdistill_core.families.base import Family
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.media.video import read_image, resize_crop
from magicdistill_core.recipe import Recipe
from tests.makers import hunyuan_shape, random_prompt, seeded_network
from train.data.start_images import load_start_images
from train.data.vae import load_vae
from train.networks.sampling import generate
from train.tools.sample import sample_file

SIDE, FRAMES, STEPS, SHIFT, SEED = 32, 17, 2, 5.0, 4
STILL = Path(__file__).parents[3] / "workflows" / "portrait_pocket.jpg"


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusers") / "vae"
    AutoencoderKLHunyuanVideo(block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2).save_pretrained(
        folder
    )
    return folder


def of_pipeline(network: torch.nn.Module, vae: Path, image: torch.Tensor, output: str) -> torch.Tensor:
    """Frames `[T, 3, H, W]` or latents of the release's pipeline, with the noise of the seed."""
    autoencoder = AutoencoderKLHunyuanVideo.from_pretrained(vae)
    # diffusers' own parts of 16 frames are shorter than the release's.
    autoencoder.use_framewise_decoding = False
    pipeline = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=network,
        vae=autoencoder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = random_prompt()
    noise = torch.randn((1, 16, 5, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(SEED))
    return pipeline(
        image,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        latents=noise,
        prompt_embeds=prompt.text_states,
        pooled_prompt_embeds=prompt.pooled,
        prompt_attention_mask=torch.ones(prompt.text_states.shape[:2]),
        output_type=output,
    ).frames


@pytest.mark.parametrize("family", [CONCAT, TOKEN_REPLACE], ids=lambda family: family.i2v_mode)
def test_latents_are_those_of_the_pipeline(family: Family, vae_folder: Path) -> None:
    network = seeded_network(hunyuan_shape(in_channels=family.in_channels), family).eval()
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    start = load_start_images(load_vae(vae_folder), None).encode(image, FRAMES)

    def made(share: float) -> torch.Tensor:
        sigmas = few_step_sigmas(STEPS, SHIFT)
        return generate(network, random_prompt(), start, 5, sigmas, "euler", SEED, image_in_noise=share)

    expected = of_pipeline(network, vae_folder, image, "latent")
    # For concat, the pipeline leaves the first latent frame out of its latents.
    found = made(0.001)[:, :, 5 - expected.shape[2] :]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (made(0.0)[:, :, 5 - expected.shape[2] :] - expected).abs().max() > 3e-4


def test_a_recipe_makes_the_video_of_the_pipeline(
    vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = seeded_network(hunyuan_shape(), CONCAT).eval()
    sizes = {"width": SIDE, "height": SIDE, "frames": FRAMES, "fps": 24.0}
    edges = {"image_in_noise": 0.001, "dropped_frames": 4}
    recipe = Recipe(kind="generator", steps=STEPS, shift=SHIFT, **sizes, **edges)
    file, out = tmp_path / "generator.safetensors", tmp_path / "out.mp4"
    save_checkpoint(file, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), recipe, random_prompt())
    written = []
    monkeypatch.setattr("train.tools.sample.write_video", lambda path, frames, *_: written.append(frames))
    settings = sample_file(file, STILL, out, vae=vae_folder, seed=SEED)
    assert (settings.image_in_noise, settings.dropped_frames) == (0.001, 4)
    image = resize_crop(read_image(STILL).float() / 255, SIDE, SIDE).permute(2, 0, 1)[None]
    expected = of_pipeline(network, vae_folder, image, "pt")[0].permute(0, 2, 3, 1)
    assert written[0].shape == expected.shape == (FRAMES - 4, SIDE, SIDE, 3)
    assert (written[0].float() / 255 - expected).abs().max() < 1.5 / 255
    sample_file(file, STILL, out, vae=vae_folder, seed=SEED, dropped_frames=0, image_in_noise=0.0)
    assert len(written[1]) == FRAMES
    with pytest.raises(VideoError, match=r"Of 5 frames, 5 are to be dropped"):
        sample_file(file, STILL, out, vae=vae_folder, frames=5, dropped_frames=5)

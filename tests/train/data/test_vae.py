from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo, AutoencoderKLWan
from safetensors.torch import save_file

from magicdistill_core.errors import MagicDistillError, VideoError
from train.data.vae import load_vae


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusers") / "vae"
    model = AutoencoderKLHunyuanVideo(block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan") / "vae"
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(folder)
    return folder


def frames(count: int = 5, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(2, count, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("which", ["taehv_file", "diffusers_folder", "wan_folder"])
def test_shapes_range_and_the_image_is_the_first_latent(which: str, request: pytest.FixtureRequest) -> None:
    vae = load_vae(request.getfixturevalue(which))
    video = frames()
    latents = vae.encode(video)
    assert latents.shape == (2, 16, 2, 4, 6)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    image = vae.encode_image(video[:, 0])
    assert image.shape == (2, 16, 1, 4, 6)
    assert torch.equal(vae.encode(video), latents)
    decoded = vae.decode(latents)
    assert decoded.shape == video.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1
    assert not decoded.requires_grad


def test_wans_latents_are_normalised_by_channel_as_its_pipeline_does(wan_folder: Path) -> None:
    model = AutoencoderKLWan.from_pretrained(wan_folder).eval()
    mean, std = (torch.tensor(v).reshape(1, 16, 1, 1, 1) for v in (model.config.latents_mean, model.config.latents_std))
    vae, video = load_vae(wan_folder), frames()
    assert vae.architecture == "wan"
    with torch.no_grad():
        raw = model.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
        assert torch.allclose(vae.encode(video), (raw - mean) / std, atol=1e-6)
        oracle = model.decode(raw).sample.transpose(1, 2)
    assert torch.allclose(vae.decode((raw - mean) / std), (oracle / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_taehv_encodes_a_still_as_latent_frame_0(taehv_file: Path) -> None:
    vae = load_vae(taehv_file)
    video = frames()
    assert torch.allclose(vae.encode_image(video[:, 0]), vae.encode(video)[:, :, :1], atol=1e-6)


def test_the_diffusers_vae_is_scaled_and_normalised_as_its_pipeline_does(diffusers_folder: Path) -> None:
    model = AutoencoderKLHunyuanVideo.from_pretrained(diffusers_folder).eval()
    video = frames()
    vae = load_vae(diffusers_folder)
    with torch.no_grad():
        raw = model.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
        assert torch.allclose(vae.encode(video), raw * 0.476986, atol=1e-6)
        oracle = model.decode(raw).sample.transpose(1, 2)
    assert torch.allclose(vae.decode(raw * 0.476986), (oracle / 2 + 0.5).clamp(0, 1), atol=1e-5)
    with pytest.raises(VideoError, match="4n \\+ 1"):
        vae.encode(frames(count=6))


def test_other_vaes_and_damage_are_refused(tmp_path: Path, taehv_file: Path, diffusers_folder: Path) -> None:
    with pytest.raises(MagicDistillError, match=r"none\.safetensors .*exist"):
        load_vae(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(taehv_file.read_bytes()[:-1000])
    with pytest.raises(MagicDistillError, match="truncated"):
        load_vae(cut)
    torch.save({}, tmp_path / "vae.pt")
    with pytest.raises(MagicDistillError, match="pickle"):
        load_vae(tmp_path / "vae.pt")
    save_file({"decoder.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MagicDistillError, match="TAEHV"):
        load_vae(tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MagicDistillError, match="vae folder"):
        load_vae(tmp_path / "empty")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "image_vae")
    with pytest.raises(MagicDistillError, match="holds a AutoencoderKL"):
        load_vae(tmp_path / "image_vae")
    weights = next(diffusers_folder.glob("*.safetensors"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((diffusers_folder / "config.json").read_bytes())
    (broken / weights.name).write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MagicDistillError, match=r"/broken .*loaded"):
        load_vae(broken)

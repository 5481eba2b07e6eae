from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo, AutoencoderKLWan
from safetensors.torch import load_file, save_file

from magicdistill_core.errors import MagicDistillError, VideoError
from magicdistill_core.families.hunyuan_video import LATENT_SCALE
from magicdistill_core.families.wan import LATENT_STD, denormalised, normalised
from magicdistill_core.geometry import latent_shape
from magicdistill_core.taehv import load_taehv
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


@torch.no_grad()
def test_the_memory_format_of_the_weights_changes_no_latent(taehv_file: Path) -> None:
    vae, plain = load_vae(taehv_file), load_taehv(taehv_file)
    formats = [p.is_contiguous(memory_format=torch.channels_last) for p in vae.parameters() if p.dim() == 4]
    assert all(formats)
    torch.testing.assert_close(vae.encode(frames()), plain.encode(frames()), atol=1e-4, rtol=1e-4)


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


def test_parts_and_tiles_only_where_the_memory_needs_them(
    diffusers_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prints how far latents in tiles are from those in one piece."""
    model = AutoencoderKLHunyuanVideo.from_pretrained(diffusers_folder).eval()
    model.use_framewise_encoding = model.use_framewise_decoding = False
    clip = frames(count=29, height=32, width=320)[:1]
    with torch.no_grad():
        whole = model.encode(clip.transpose(1, 2) * 2 - 1).latent_dist.mode() * 0.476986
        shown = (model.decode(whole / 0.476986).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    vae = load_vae(diffusers_folder)
    assert torch.allclose(vae.encode(clip), whole, atol=1e-6)
    assert torch.allclose(vae.decode(whole), shown, atol=1e-6)
    assert not caplog.records

    # Room for a picture in one piece, then for a tile of 64 frames, then for nothing.
    frame = 4 * 4 * 8 * 32
    monkeypatch.setattr("train.data.diffusers_vaes.free_bytes", lambda device: 29 * 300 * frame)
    tiled = load_vae(diffusers_folder)
    assert torch.allclose(tiled.encode_image(clip[:, 0]), vae.encode_image(clip[:, 0]), atol=1e-6)
    latents, pictures = tiled.encode(clip), tiled.decode(whole)
    assert "in tiles of 256 pixels and parts of 64 frames" in caplog.text
    difference = float((latents - whole).norm() / whole.norm())
    level = float((pictures - shown).abs().mean())
    print(f"in tiles, latents differ by {difference:.1%} and decoded pictures by {level:.4f}")  # noqa: T201
    assert 0 < difference < 0.5
    monkeypatch.setattr("train.data.diffusers_vaes.free_bytes", lambda device: 0)
    assert torch.equal(tiled.encode(clip), latents), "all clips of one size are encoded alike"
    assert not torch.allclose(load_vae(diffusers_folder).encode(clip), latents, atol=1e-6)
    assert "parts of 16 frames" in caplog.text


def test_long_videos_are_encoded_in_parts_of_64_frames(diffusers_folder: Path) -> None:
    """As by diffusers with the release's numbers."""
    model = AutoencoderKLHunyuanVideo.from_pretrained(diffusers_folder).eval()
    model.enable_tiling(tile_sample_min_num_frames=64, tile_sample_stride_num_frames=48)
    clip = frames(count=81, height=16, width=16)[:1]
    with torch.no_grad():
        expected = model.encode(clip.transpose(1, 2) * 2 - 1).latent_dist.mode()
    found = load_vae(diffusers_folder).encode(clip)
    assert found.shape == (1, 16, 21, 2, 2)
    assert torch.allclose(found, expected * 0.476986, atol=1e-6)


def test_wans_videos_are_never_tiled(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.diffusers_vaes.free_bytes", lambda device: 0)
    model, clip = AutoencoderKLWan.from_pretrained(wan_folder).eval(), frames(height=32, width=320)[:1]
    with torch.no_grad():
        expected = normalised(model.encode(clip.transpose(1, 2) * 2 - 1).latent_dist.mode())
    assert torch.allclose(load_vae(wan_folder).encode(clip), expected, atol=1e-6)


def test_real_latents_have_the_layout_and_the_scale_of_the_networks(shared_data: Path) -> None:
    """Real encodings by both releases' VAEs: HunyuanVideo's raw, Wan's normalised."""
    raw = torch.from_numpy(np.load(shared_data / "latents" / "hunyuan_129x416x544.npy")).float()
    assert raw.shape == latent_shape(129, 416, 544)
    assert 0.75 < float((raw * LATENT_SCALE).std()) < 1.1
    wan = load_file(shared_data / "latents" / "wan21_61x320x512.safetensors")
    (latents,) = (value.float() for value in wan.values())
    assert latents.shape == latent_shape(61, 320, 512)
    assert 0.75 < float(latents.std()) < 1.1
    # The raw latents have the spread of each channel that the release states, so the order of the channels is right.
    spread = denormalised(latents).std(dim=(0, 2, 3, 4))
    assert float(torch.corrcoef(torch.stack([spread, torch.tensor(LATENT_STD)]))[0, 1]) > 0.5


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

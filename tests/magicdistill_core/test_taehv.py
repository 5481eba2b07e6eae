"""The autoencoder's geometry, causality, errors and files. tests/comfyui compares it with ComfyUI's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.errors import VideoError
from magicdistill_core.taehv import TAEHV, TAEHVError, load_taehv


@pytest.fixture(scope="module")
def vae(taehv_file: Path) -> TAEHV:
    return load_taehv(taehv_file)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(2, 9, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_shapes(vae: TAEHV, clip: torch.Tensor) -> None:
    latents = vae.encode(clip)
    assert latents.shape == (2, 16, 3, 4, 6)
    frames = vae.decode(latents)
    assert frames.shape == clip.shape
    assert frames.min() >= 0
    assert frames.max() <= 1


@torch.no_grad()
def test_latent_0_is_the_first_frame_as_a_still(vae: TAEHV, clip: torch.Tensor) -> None:
    assert torch.equal(vae.encode_image(clip[:, 0]), vae.encode(clip)[:, :, :1])


@torch.no_grad()
def test_latent_k_sees_frames_up_to_4k_and_no_further(vae: TAEHV, clip: torch.Tensor) -> None:
    before = vae.encode(clip)
    for frame, first_changed in ((0, 0), (4, 1), (5, 2), (8, 2)):
        changed = clip.clone()
        changed[:, frame] = 1 - changed[:, frame]
        differs = (vae.encode(changed) - before).abs().amax(dim=(0, 1, 3, 4)) > 0
        assert differs.nonzero()[0].item() == first_changed


@torch.no_grad()
@pytest.mark.parametrize("frames", [4, 8])
def test_a_clip_processed_in_parts_equals_the_full_clip(
    frames: int, vae: TAEHV, clip: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = vae.encode(clip)
    decoded = vae.decode(latents)
    most = 0

    def seen(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal most
        most = max(most, given[0].shape[0] // clip.shape[0])

    handles = [layer.register_forward_pre_hook(seen) for layer in (vae.encoder[0], vae.decoder[-1])]
    monkeypatch.setattr("magicdistill_core.taehv._PART_PIXELS", frames * 32 * 48)
    torch.testing.assert_close(vae.encode(clip), latents, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-6, rtol=1e-5)
    for handle in handles:
        handle.remove()
    assert most == frames


@torch.no_grad()
def test_clips_of_a_batch_do_not_affect_each_other(vae: TAEHV, clip: torch.Tensor) -> None:
    """The memory of one clip must not leak into the next, neither in the encoder nor in the decoder."""
    latents = vae.encode(clip)
    alone = torch.cat([vae.encode(one[None]) for one in clip])
    torch.testing.assert_close(latents, alone, atol=1e-5, rtol=1e-4)
    apart = torch.cat([vae.decode(one[None]) for one in latents])
    torch.testing.assert_close(vae.decode(latents), apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((1, 8, 3, 32, 32), VideoError, "8 frames.*4n \\+ 1"),
        ((1, 5, 3, 40, 32), VideoError, "multiples of 16"),
        ((1, 5, 4, 32, 32), TAEHVError, "shape"),
        ((5, 3, 32, 32), TAEHVError, "shape"),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    vae: TAEHV, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        vae.encode(torch.zeros(shape))


def test_latents_of_other_models_are_refused(vae: TAEHV) -> None:
    with pytest.raises(TAEHVError, match=r"\[B, 16, t, h, w\].*\[1, 48, 2, 4, 4\]"):
        vae.decode(torch.zeros(1, 48, 2, 4, 4))


def test_a_file_of_another_layout_is_refused(taehv_file: Path, tmp_path: Path) -> None:
    state = load_file(taehv_file)
    state["decoder.99.weight"] = state.pop("decoder.1.weight")
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(TAEHVError, match=r"2 tensors.*decoder\.1\.weight.*decoder\.99\.weight"):
        load_taehv(tmp_path / "other.safetensors")


def test_truncated_and_missing_files_are_refused(taehv_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(taehv_file.read_bytes()[:1000])
    with pytest.raises(TAEHVError, match="truncated"):
        load_taehv(tmp_path / "cut.safetensors")
    with pytest.raises(TAEHVError, match=r"autoencoder .*none\.safetensors"):
        load_taehv(tmp_path / "none.safetensors")

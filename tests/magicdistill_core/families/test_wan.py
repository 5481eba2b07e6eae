import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from magicdistill_core.checkpoint import parse_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.wan import (
    FEATURE_SHAPE,
    IMAGE_TO_VIDEO,
    LATENT_MEAN,
    LATENT_STD,
    normalised,
)
from magicdistill_core.layouts.modules import diffusers_to_file, file_to_diffusers, missing_keys
from magicdistill_core.layouts.wan import WAN
from tests.makers import seeded_network, wan_shape
from train.networks.network import load_network

SHAPE = wan_shape(text_dim=32)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """In diffusers' names."""
    return dict(seeded_network(SHAPE, IMAGE_TO_VIDEO).state_dict())


def test_names_are_those_of_diffusers_own_converter(state: dict[str, Tensor]) -> None:
    file = diffusers_to_file(WAN, state)
    assert missing_keys(WAN, file) == []
    for converted in (convert_wan_transformer_to_diffusers(dict(file)), file_to_diffusers(WAN, file, SHAPE.hidden)):
        assert converted.keys() == state.keys()
        assert all(torch.equal(converted[key], state[key]) for key in state)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model."])
def test_both_spellings_are_recognised_with_their_sizes(prefix: str, state: dict[str, Tensor]) -> None:
    old = {"blocks.0.attn2.norm_added_q.weight": torch.ones(128)}  # from early releases; no network reads it
    for spelt in (state | old, diffusers_to_file(WAN, state)):
        found = parse_checkpoint({f"{prefix}{key}": value for key, value in spelt.items()}, None, "x")
        assert (found.shape, found.family()) == (SHAPE, IMAGE_TO_VIDEO)
        again = load_network(found).state_dict()
        assert all(torch.equal(again[key], state[key]) for key in state)


def test_other_versions_and_incomplete_weights_are_refused(state: dict[str, Tensor]) -> None:
    file = diffusers_to_file(WAN, state)
    text_only = {key: value for key, value in file.items() if not key.startswith("img_emb.")}
    with pytest.raises(CheckpointError, match=r"x: .*Wan 2\.2.* 36 .*img_emb"):
        parse_checkpoint(text_only, None, "x")
    with pytest.raises(CheckpointError, match=r"1 .*missing \(blocks\.1\.modulation\) and 0 "):
        parse_checkpoint({key: value for key, value in file.items() if key != "blocks.1.modulation"}, None, "x")
    with pytest.raises(CheckpointError, match=r"0 .*missing and 1 .*unknown \(img_emb\.strange\)"):
        parse_checkpoint(file | {"img_emb.strange": torch.zeros(1)}, None, "x")


@pytest.mark.parametrize(
    ("channels", "title"), [(16, "text-to-video"), (36, r"Wan 2\.2 image-to-video"), (48, r"Wan 2\.2 TI2V 5B")]
)
def test_models_without_clip_features_are_named(channels: int, title: str, state: dict[str, Tensor]) -> None:
    file = {key: value for key, value in diffusers_to_file(WAN, state).items() if not key.startswith("img_emb.")}
    file["patch_embedding.weight"] = torch.zeros(128, channels, 1, 2, 2)
    with pytest.raises(CheckpointError, match=rf"x: .*{title}.* {channels} input channels"):
        parse_checkpoint(file, None, "x")


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("img_emb.emb_pos", r"Wan 2\.1 FLF2V.*first and last frame"),
        ("vace_blocks.0.norm3.weight", "Wan VACE"),
        ("control_adapter.conv.weight", "Wan Fun Camera"),
        ("ref_conv.weight", "Wan Fun Control"),
        ("casual_audio_encoder.weights", r"Wan 2\.2 S2V"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", r"Wan 2\.2 Animate"),
    ],
)
def test_other_models_of_the_family_are_refused_by_name(key: str, title: str, state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=rf"x is {title}.*{key}"):
        parse_checkpoint(diffusers_to_file(WAN, state) | {key: torch.zeros(1)}, None, "x")
    with pytest.raises(CheckpointError, match=r"x is Wan 2\.1 FLF2V.*image_embedder\.pos_embed"):
        parse_checkpoint(state | {"condition_embedder.image_embedder.pos_embed": torch.zeros(1)}, None, "x")


def test_latents_are_normalised_as_the_release_does() -> None:
    config = AutoencoderKLWan(base_dim=4, num_res_blocks=1).config
    assert (list(LATENT_MEAN), list(LATENT_STD)) == (config.latents_mean, config.latents_std)
    raw = torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = normalised(raw)
    assert found[1, 5, 2, 1, 0] == pytest.approx(float((raw[1, 5, 2, 1, 0] - 0.9653) / 1.7708), abs=1e-6)


def test_the_condition_is_mask_then_image_and_features() -> None:
    latents, features = torch.full((2, 16, 3, 4, 6), 2.0), torch.full((2, *FEATURE_SHAPE), 5.0)
    channels, seen = IMAGE_TO_VIDEO.condition(StartImage(latents, features), 3)
    assert channels.shape == (2, 20, 3, 4, 6)
    assert channels[:, :4, 0].unique().tolist() == [1.0]
    assert channels[:, :4, 1:].unique().tolist() == [0.0]
    assert torch.equal(channels[:, 4:], latents)
    assert torch.equal(seen, features)
    for image in (StartImage(latents[:, :, :1], features), StartImage(latents)):
        with pytest.raises(CheckpointError, match=r"3 latent frames.*features"):
            IMAGE_TO_VIDEO.condition(image, 3)

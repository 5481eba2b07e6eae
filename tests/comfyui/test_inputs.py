"""Images, latents and sounds of every number type and shape that other nodes may send."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.families.hunyuan_video import LATENT_SCALE
from magicdistill_core.media.video import read_image, resize_crop
from magicdistill_core.pocket.files import GENERATOR, VAE
from magicdistill_core.taehv import load_taehv
from tests.makers import StockSide

from .prompts import Prompt

pytestmark = pytest.mark.slow


def write_transparent(path: Path) -> None:
    """Write a picture whose left half is transparent, with red hidden in it."""
    pixels = np.random.default_rng(3).integers(0, 256, (60, 100, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, :50] = (255, 0, 0, 0)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def answer(stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return what ComfyUI's side computed for all inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_transparent(folder / "portrait.png")
    job = {"run": "inputs", "model": str(GENERATOR), "vae": str(VAE), "folder": str(folder), "image": "portrait.png"}
    (out,) = stock_side([job])
    with torch.no_grad():
        crop = resize_crop(read_image(folder / "portrait.png"), 32, 32)
        out["on white"] = load_taehv(VAE).encode_image(crop.movedim(-1, 0)[None].float() / 255) / LATENT_SCALE
    return out


def said(answer: dict[str, Tensor], name: str) -> str:
    """Return the text or the error of Portrait to video for an input."""
    return bytes(answer[f"{name} said"].tolist()).decode()


@pytest.mark.parametrize("name", ["torch.float16", "torch.bfloat16", "torch.float64", "uint8"])
def test_every_number_type_gives_the_same_start_image(name: str, answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer[name], answer["torch.float32"], atol=0.02, rtol=0.02)
    assert said(answer, name) == said(answer, "torch.float32")


def test_a_gray_image_is_repeated_in_all_channels(answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer["gray"], answer["gray as rgb"])


def test_a_transparent_image_is_laid_on_white_as_in_training(answer: dict[str, Tensor]) -> None:
    error = (answer["joined"] - answer["on white"]).abs().max()
    assert error < 0.1 * (answer["torch.float32"] - answer["on white"]).abs().max()


@pytest.mark.parametrize("name", ["no channels", "two channels", "none", "int64", "bool", "five axes", "flat"])
def test_what_is_no_image_is_explained(name: str, answer: dict[str, Tensor]) -> None:
    assert name not in answer
    assert "IMAGE of start_image" in said(answer, name)
    assert "Connect the output of" in said(answer, name)


def test_values_outside_the_range_are_told(answer: dict[str, Tensor]) -> None:
    assert "NaN" in said(answer, "nan")
    assert "nan" not in answer
    assert re.search(r"values from 0 to 255", said(answer, "bytes as floats"))


@pytest.mark.parametrize("dtype", ["torch.float16", "torch.float64"])
def test_a_latent_of_any_number_type_gets_the_noise_of_the_seed(dtype: str, answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer[f"sampled {dtype}"], answer["sampled"], atol=1e-5, rtol=1e-5)


def test_the_chain_runs_with_half_intermediates(answer: dict[str, Tensor]) -> None:
    assert {answer[f"half {name}"].dtype for name in ("image", "latent", "sampled", "frames")} == {torch.float16}
    torch.testing.assert_close(answer["half sampled"].float(), answer["sampled"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", ["torch.float16", "torch.float64"])
def test_sigmas_may_have_any_number_type(dtype: str, answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer[f"sigmas {dtype}"], answer["sigmas torch.float32"], atol=0.01, rtol=0.01)


def prompt(size: int = 32) -> Prompt:
    """Return a prompt that prepares the file `transparent.png`."""
    sizes = {"width": size, "height": size, "length": 5, "batch_size": 1}
    image = {"model": ["load", 0], "vae": ["vae", 0], "start_image": ["image", 0]}
    loader = {"unet_name": "tiny.safetensors", "weight_dtype": "default", "start_image_mode": "from the file"}
    return {
        "load": {"class_type": "MagicDistillLoadModel", "inputs": loader},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae.safetensors"}},
        "image": {"class_type": "LoadImage", "inputs": {"image": "transparent.png"}},
        "video": {"class_type": "MagicDistillPortraitToVideo", "inputs": image | sizes},
        "end": {"class_type": "PreviewAny", "inputs": {"source": ["video", 1]}},
    }


def test_hidden_colours_are_told_unless_the_workflow_uses_the_mask(server: Any) -> None:
    write_transparent(server.directory / "input" / "transparent.png")
    (told,) = server.run(prompt())["video"]["text"]
    assert re.search("transparent.png is transparent.* Join Image with Alpha", told)
    joined = prompt()
    joined["join"] = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["image", 0], "alpha": ["image", 1]}}
    joined["video"]["inputs"]["start_image"] = ["join", 0]
    (told,) = server.run(joined)["video"]["text"]
    assert "transparent" not in told
    # Far behind a node that keeps the colours; and a picture that hides nothing but white.
    scaled = prompt(48)
    scaled["scale"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["image", 0], "upscale_method": "area", "width": 80, "height": 80, "crop": "disabled"},
    }
    scaled["video"]["inputs"]["start_image"] = ["scale", 0]
    assert "is transparent" in server.run(scaled)["video"]["text"][0]
    Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(server.directory / "input" / "transparent.png")
    assert "is transparent" not in server.run(prompt(64))["video"]["text"][0]


def test_frames_with_alpha_are_saved_on_white(server: Any) -> None:
    write_transparent(server.directory / "input" / "transparent.png")
    save = {"video": ["join", 0], "fps": 8.0, "filename_prefix": "save/alpha", "format": "webp (animated)", "crf": 0.0}
    asked = {
        "image": {"class_type": "LoadImage", "inputs": {"image": "transparent.png"}},
        "join": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["image", 0], "alpha": ["image", 1]}},
        "save": {"class_type": "MagicDistillSaveVideo", "inputs": save},
    }
    (entry,) = server.run(asked)["save"]["files"]
    with Image.open(server.directory / "output" / entry["subfolder"] / entry["filename"]) as image:
        saved = np.asarray(image.convert("RGB"))
    assert (saved[:, :50] == 255).all()
    assert saved[:, 50:].std() > 30

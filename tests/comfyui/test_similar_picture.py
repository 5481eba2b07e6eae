"""Similar picture: it finds what transformers' CLIP finds, by text and by image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tests.makers import StockSide
from train.data.clip_pixels import clip_pixels

pytestmark = pytest.mark.slow

LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = LAYERS | {"max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", "eos_token_id": 49407}
VISION = LAYERS | {"image_size": 28, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
WIDTH = 24
TEXTS = ["a red picture", "something else, blue", "a woman who smiles"]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    """A CLIP of the true class with few layers. Its weights are large, so that pictures and texts differ."""
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIPModel(config)
        # ComfyUI's text encoders project to the width that they have.
        model.text_projection = nn.Linear(32, 32, bias=False)
        model.visual_projection = nn.Linear(32, 32, bias=False)
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.4)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    for number in range(12):
        pixels = torch.randint(0, 256, (28, 28, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def answer(
    clip: CLIPModel, folder: Path, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    work = tmp_path_factory.mktemp("similar")
    state = clip.state_dict()
    vision = {k: v.contiguous() for k, v in state.items() if k.startswith(("vision_model", "visual_projection"))}
    text = {k: v.contiguous() for k, v in state.items() if k.startswith(("text_model", "text_projection"))}
    save_file({k: v for k, v in vision.items() if "position_ids" not in k}, work / "vision.st")
    save_file({k: v for k, v in text.items() if "position_ids" not in k}, work / "text.st")
    save_file({"image": torch.rand(1, 28, 28, 3, generator=torch.Generator().manual_seed(99))}, work / "image.st")
    image = {"image": str(work / "image.st")}
    queries = [{"text": text} for text in TEXTS]
    queries += [
        image,
        image | {"text": TEXTS[0]},
        image | {"rank": 2},
        {},
        image | {"rank": 99},
        image | {"folder": ".."},
    ]
    job = {
        "run": "similar",
        "queries": queries,
        "input": str(folder),
        "output": str(work),
        "vision_config": VISION | {"num_channels": 3, "projection_dim": 32, "model_type": "clip_vision_model"},
        "text_config": TEXT,
    }
    save_file({"frames": random_frames()}, work / "frames.st")
    job |= {"frames": str(work / "frames.st")}
    job |= {"vision_weights": str(work / "vision.st"), "text_weights": str(work / "text.st")}
    (found,) = stock_side([job])
    return found


def random_frames() -> Tensor:
    return torch.rand(3, 3, 40, 28, generator=torch.Generator().manual_seed(7))


def text(answer: dict[str, Tensor], name: str) -> str:
    return bytes(answer[name].tolist()).decode()


@torch.no_grad()
def order(clip: CLIPModel, folder: Path, queries: list[Tensor]) -> list[str]:
    """The pictures by their similarity to the mean of the queries, by transformers alone."""
    paths = sorted(path for path in folder.glob("[0-9]*.png"))
    pictures = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    embeddings = image_embeddings(clip, pictures / 255)
    query = torch.stack([nn.functional.normalize(one, dim=-1) for one in queries]).mean(dim=0)
    scores = nn.functional.normalize(embeddings, dim=-1) @ query
    return [paths[place].name for place in scores.argsort(descending=True)]


def image_embeddings(clip: CLIPModel, pictures: Tensor) -> Tensor:
    pixels = clip_pixels(pictures.movedim(-1, 1), 28, middle=True)
    return clip.visual_projection(clip.vision_model(pixels).pooler_output)


@torch.no_grad()
def text_embedding(clip: CLIPModel, tokenizer: CLIPTokenizer, words: str) -> Tensor:
    tokens = tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")
    return clip.text_projection(clip.text_model(tokens.input_ids).pooler_output)[0]


def test_texts_find_what_transformers_finds(
    clip: CLIPModel, folder: Path, answer: dict[str, Tensor], comfyui_dir: Path
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(comfyui_dir / "comfy" / "sd1_tokenizer")
    firsts = set()
    for number, words in enumerate(TEXTS):
        expected = order(clip, folder, [text_embedding(clip, tokenizer, words)])
        assert text(answer, f"name.{number}") == expected[0]
        said = text(answer, f"said.{number}")
        assert [line.split()[1] for line in said.splitlines() if line[:2] in ("1:", "2:", "3:")] == expected[:3]
        firsts.add(expected[0])
    assert len(firsts) > 1


def test_images_and_both_together_find_what_transformers_finds(
    clip: CLIPModel, folder: Path, answer: dict[str, Tensor], comfyui_dir: Path
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(comfyui_dir / "comfy" / "sd1_tokenizer")
    picture = torch.rand(1, 28, 28, 3, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        image = image_embeddings(clip, picture)[0]
    by_image = order(clip, folder, [image])
    both = order(clip, folder, [text_embedding(clip, tokenizer, TEXTS[0]), image])
    assert text(answer, "name.3") == by_image[0]
    assert text(answer, "name.4") == both[0]
    assert text(answer, "name.5") == by_image[1]
    with Image.open(folder / by_image[0]) as expected:
        pixels = torch.from_numpy(np.array(expected))[None] / 255
    torch.testing.assert_close(answer["picture.3"], pixels)


def test_the_folder_is_read_once_and_damage_is_told(answer: dict[str, Tensor]) -> None:
    assert "12 pictures, of which 12 are new" in text(answer, "said.0")
    assert "12 pictures, of which 0 are new" in text(answer, "said.1")
    assert "broken.png cannot be read" in text(answer, "said.1")


def test_a_changed_picture_makes_the_node_run_again(answer: dict[str, Tensor]) -> None:
    assert text(answer, "mark.0") == text(answer, "mark.5")
    assert text(answer, "mark afterwards") != text(answer, "mark.0")
    assert text(answer, "mark of a linked folder") == "none"


def test_bad_inputs_are_a_sentence(answer: dict[str, Tensor]) -> None:
    assert "Write a text, or connect an image" in text(answer, "said.6")
    assert "rank is 99, but the folder has 12 pictures" in text(answer, "said.7")
    assert "not inside ComfyUI's input folder" in text(answer, "said.8")


def test_long_video_measures_identity_with_the_same_embeddings(clip: CLIPModel, answer: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected = image_embeddings(clip, random_frames().movedim(1, -1))
    found = answer["identity of frames"]
    # ComfyUI resizes pictures in its own way, so the numbers are not exactly transformers'.
    assert (nn.functional.cosine_similarity(found, expected) > 0.9999).all()
    assert (nn.functional.cosine_similarity(found, expected.roll(1, 0)) < 0.99).all()

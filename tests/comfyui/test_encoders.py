"""The trainer's encoders of images and of Wan's texts equal those of ComfyUI, on few layers with the same weights."""

from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from magicdistill_core.families.wan import TEXT_TOKENS
from tests.makers import StockSide
from train.data.clip_pixels import clip_pixels
from train.data.encoders.wan import WanText
from train.data.start_images import ClipVision

pytestmark = pytest.mark.slow

VISION = {"num_attention_heads": 2, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}
VISION |= {"patch_size": 14, "layer_norm_eps": 1e-5}
# ComfyUI's projector of LLaVA always has this width.
WIDTH = 4096
UMT5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 3, "num_heads": 2, "vocab_size": 60}
TEXTS = ["", "she turns to the window", "a face, smiling: she speaks"]
Side = tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]


def randomised(network: nn.Module) -> nn.Module:
    """Return a network with random weights, biases and norms, in which no part is without effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for parameter in network.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    return network.eval()


def vision_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a vision model under the names of its release."""
    return {f"vision_model.{key.removeprefix('vision_model.')}": value for key, value in network.state_dict().items()}


def test_images_are_encoded_as_by_comfyui(stock_side: StockSide, tmp_path: Path) -> None:
    """LLaVA's tokens of the middle of an image, and Wan's CLIP features of an image squeezed into a square."""
    image = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(3))
    save_file({"image": image.movedim(1, -1).contiguous()}, tmp_path / "in.st")
    vision = CLIPVisionConfig(**VISION, image_size=336, hidden_act="quick_gelu")
    text = LlamaConfig(hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
    llava = randomised(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).model)
    projector = {
        f"multi_modal_projector.{key}": value for key, value in llava.multi_modal_projector.state_dict().items()
    }
    save_file(vision_weights(llava.vision_tower) | projector, tmp_path / "llava.st")
    tower = randomised(CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=224, hidden_act="gelu")))
    save_file(vision_weights(tower), tmp_path / "clip_h.st")
    common = VISION | {"num_channels": 3, "projection_dim": 8, "model_type": "clip_vision_model"}
    job = {"run": "clip_vision", "inputs": str(tmp_path / "in.st")}
    configs = {
        "llava": {"image_size": 336, "hidden_act": "quick_gelu", "projector_type": "llava3"},
        "clip_h": {"image_size": 224, "hidden_act": "gelu"},
    }
    jobs = [
        job | {"weights": str(tmp_path / f"{name}.st"), "config": common | config, "crop": name == "llava"}
        for name, config in configs.items()
    ]
    seen, features = stock_side(jobs)
    with torch.no_grad():
        expected = torch.cat(list(llava.get_image_features(clip_pixels(image, 336, middle=True)).pooler_output))
    assert expected.shape[-2:] == (576, WIDTH)
    # A pixel between two levels of 8 bits may round to either.
    scale = float(expected.std())
    torch.testing.assert_close(
        seen["projected"].reshape(576, WIDTH), expected.reshape(576, WIDTH), atol=5e-3 * scale, rtol=1e-3
    )
    found = ClipVision(tower).features(image)
    assert found.shape == (1, 257, 32)
    torch.testing.assert_close(features["features"], found, atol=5e-3 * float(found.std()), rtol=1e-3)


def test_wans_texts_are_encoded_as_by_comfyui(stock_side: StockSide, tmp_path: Path) -> None:
    """With the tokens of one SentencePiece model. ComfyUI pads the states with zeros, as each of our calls does."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[1:] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=UMT5["vocab_size"],
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    network = randomised(UMT5EncoderModel(UMT5Config(**UMT5)))
    # The weights are stored once: the embedding's other name is an alias.
    weights = {key: value for key, value in network.state_dict().items() if key != "encoder.embed_tokens.weight"}
    save_file(weights, tmp_path / "umt5.st")
    job = {"run": "umt5", "weights": str(tmp_path / "umt5.st"), "pieces": str(tmp_path / "spiece.model")}
    (answer,) = stock_side([job | {"texts": TEXTS, "config": UMT5}])
    encoder = WanText(T5Tokenizer.from_pretrained(tmp_path / "spiece.model", extra_ids=0), network)
    for number, text in enumerate(TEXTS):
        expected = encoder.encode(text).text_states
        tokens = expected.shape[1]
        found = answer[f"states.{number}"]
        assert found.shape == (1, TEXT_TOKENS, UMT5["d_model"])
        torch.testing.assert_close(found[:, :tokens], expected, atol=1e-4, rtol=1e-4)
        assert not found[:, tokens:].any()
        assert tokens > len(text.split())

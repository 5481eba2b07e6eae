"""Portrait to video and text + image encode, compared with ComfyUI's own nodes, the core, and transformers' Llama."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO, TEXT_TOKENS
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.media.video import Box, resize_crop
from magicdistill_core.taehv import TAEHV, load_taehv
from tests.makers import StockSide
from train.data.clip_pixels import clip_pixels
from train.data.encoders.base import TextEncoder
from train.data.encoders.hunyuan_i2v import HunyuanI2VText
from train.data.encoders.hunyuan_video import HunyuanVideoText
from train.data.encoders.llama import ClipL, Llama
from train.data.encoders.magic141 import Magic141Text

from .batches import WAN_SHAPE

pytestmark = pytest.mark.slow

PHOTO = (60, 100)  # rows and columns
SIZES = {"width": 64, "height": 48, "length": 9}


@dataclass(frozen=True)
class Exchange:
    """ComfyUI's answers by job, and the inputs."""

    answers: dict[str, dict[str, Tensor]]
    photo: Tensor
    inputs: dict[str, Tensor]
    null_text: Tensor
    vae: Path

    def said(self, name: str) -> str:
        """Return the text under the node, or its error."""
        return bytes(self.answers[name]["said"].tolist()).decode()

    def encoded(self, crop: Tensor) -> Tensor:
        """Encode a start image of the video's size with the core's VAE, in the scale of ComfyUI's LATENT."""
        with torch.no_grad():
            return load_taehv(self.vae).encode_image(crop.movedim(-1, 1)) / LATENT_SCALE


@pytest.fixture(scope="module")
def exchange(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Write all files, run all jobs in one ComfyUI process, and read the answers."""
    folder = tmp_path_factory.mktemp("conditioning")
    generator = torch.Generator().manual_seed(5)
    null_text = torch.randn(1, 7, WAN_SHAPE.text_dim, generator=generator)
    wan, concat = folder / "wan.safetensors", folder / "concat.safetensors"
    state = diffusers_to_file(WAN, tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO).state_dict())
    recipe = tiny.recipe("teacher", family="wan")
    save_checkpoint(wan, state, recipe, NullPrompt(null_text, None))
    tiny.write_model(concat, tiny.network(tiny.shape()), tiny.recipe("generator"), tiny.prompt())
    replace = folder / "replace.safetensors"
    network = tiny.network(tiny.shape(in_channels=16), TOKEN_REPLACE)
    tiny.write_model(replace, network, tiny.recipe("generator", i2v_mode="token_replace"), tiny.prompt())
    prompted = folder / "prompted.safetensors"
    asked = {"prompt_template": "hunyuan_i2v_concat", "dropped_frames": 4}
    tiny.write_model(prompted, tiny.network(tiny.shape()), tiny.recipe("generator", **asked), tiny.prompt())
    hunyuan_vae, wan_vae = folder / "hunyuan_vae.safetensors", folder / "wan_vae.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tae = TAEHV().state_dict()
    # ComfyUI distinguishes the two by the number type.
    save_file({key: value.half() for key, value in tae.items()}, hunyuan_vae)
    save_file(tae, wan_vae)
    coarse = torch.rand(1, 3, PHOTO[0] // 20, PHOTO[1] // 20, generator=generator)
    photo = torch.nn.functional.interpolate(coarse, scale_factor=20).movedim(1, -1).contiguous()
    inputs = {
        "image": torch.rand(1, 48, 64, 3, generator=generator),
        "features": torch.randn(1, *FEATURE_SHAPE, generator=generator),
        "text": torch.randn(1, 512, WAN_SHAPE.text_dim, generator=generator),
        "pooled": torch.randn(1, 768, generator=generator),
    }
    save_file(inputs, folder / "all.st")
    save_file({"image": photo}, folder / "photo.st")
    save_file({"image": photo, "text": inputs["text"], "pooled": inputs["pooled"]}, folder / "text.st")
    hunyuan = {"model": str(concat), "vae": str(hunyuan_vae), "inputs": str(folder / "photo.st"), "loader": "pack"}
    with_text = hunyuan | {"loader": "stock", "inputs": str(folder / "text.st")}
    from_pack = {"model": str(prompted), "loader": "pack", "settings": {}}
    all_of_wan = {"model": str(wan), "vae": "wan", "inputs": str(folder / "all.st"), "settings": SIZES, "native": True}
    face = {"x": 70, "y": 10, "width": 20, "height": 20}
    person = {"x": 0, "y": 0, "width": 90, "height": 60, "label": "person"}
    jobs = {
        "wan": all_of_wan,
        "wan batch": all_of_wan | {"settings": SIZES | {"batch_size": 3}},
        "wan tiny vae": all_of_wan | {"vae": str(wan_vae)},
        "wan without text": hunyuan | {"model": str(wan), "vae": str(wan_vae), "loader": "stock", "settings": SIZES},
        "wan null prompt": hunyuan | {"model": str(wan), "vae": str(wan_vae), "settings": {}},
        "wan without features": with_text | {"model": str(wan), "vae": str(wan_vae), "settings": SIZES},
        "wan with hunyuan's vae": all_of_wan | {"vae": str(hunyuan_vae)},
        "wan with hunyuan's own vae": all_of_wan | {"vae": "hunyuan", "scaffold": str(hunyuan_vae)},
        "hunyuan with wan's vae": hunyuan | {"vae": "wan", "settings": {}},
        "hunyuan with wan's tiny vae": hunyuan | {"vae": str(wan_vae), "settings": {}},
        "recipe": hunyuan | {"settings": {}},
        "fit": hunyuan | {"settings": {"resolution": "fit the image"}},
        "fit to a width": hunyuan | {"settings": {"resolution": "fit the image", "width": 128}},
        "seconds": hunyuan | {"settings": {"seconds": 1.2, "length": 5}},
        "rounded": hunyuan | {"settings": {"length": 7}},
        "face": hunyuan | {"settings": {"width": 48, "height": 48, "face": [[face]]}},
        "faces": hunyuan | {"settings": {"width": 48, "height": 48, "face": [[person, face | {"label": "face"}]]}},
        "no face": hunyuan | {"settings": {"width": 48, "height": 48, "face": [[]]}},
        "face elsewhere": hunyuan | {"settings": {"face": [face | {"x": 400}]}},
        "malformed face": hunyuan | {"settings": {"face": [{"bbox": [1, 2, 3, 4]}]}},
        "stock without a size": with_text | {"settings": {"width": 64}},
        "stock": with_text | {"settings": {"resolution": "fit the image", "length": 5, "height": 48}},
        "stock token replace": with_text | {"model": str(replace), "settings": SIZES},
        "token replace": hunyuan | {"model": str(replace), "settings": {}},
        "prompted": hunyuan | {"model": str(prompted), "settings": {}},
        "prompted as trained": with_text | from_pack | {"mark": "hunyuan_i2v_concat"},
        "prompted otherwise": with_text | from_pack | {"mark": "magic141"},
        "wan prompted otherwise": all_of_wan | {"mark": "magic141"},
    }
    answers = dict(zip(jobs, stock_side([job | {"run": "portrait"} for job in jobs.values()]), strict=True))
    return Exchange(answers, photo, inputs, null_text, hunyuan_vae)


@pytest.mark.parametrize("name", ["wan", "wan batch", "wan tiny vae"])
def test_wan_is_conditioned_as_comfyuis_own_node_does_it(name: str, exchange: Exchange) -> None:
    answer = exchange.answers[name]
    for key in ("concat_latent_image", "concat_mask"):
        assert torch.equal(answer[key], answer[f"native.{key}"])
    assert answer["concat_latent_image"].shape == (1, 16, 3, 6, 8)
    assert answer["concat_latent_image"][:, :, 1:].std() > 1e-3, "gray frames do not encode to zeros"
    assert torch.equal(answer["latent.samples"], answer["native.samples"])
    assert torch.equal(answer["features"], exchange.inputs["features"])
    assert torch.equal(answer["text"], exchange.inputs["text"])
    assert "guidance" not in answer
    notes = [line for line in exchange.said(name).splitlines() if "Note" in line]
    assert all("no recipe" in note for note in notes)


def test_wan_without_features_is_noted(exchange: Exchange) -> None:
    assert "CLIP features" in exchange.said("wan without features")
    assert "features" not in exchange.answers["wan without features"]


def test_wans_null_prompt_is_padded_as_its_network_was_trained(exchange: Exchange) -> None:
    text = exchange.answers["wan null prompt"]["text"]
    assert torch.equal(text[:, :7], exchange.null_text)
    assert text.shape[1] == TEXT_TOKENS
    assert not text[:, 7:].any()
    assert "64 x 48, 17 frames" in exchange.said("wan null prompt")


def test_stock_loaded_wan_without_text_is_refused(exchange: Exchange) -> None:
    for fact in ("no null prompt", "positive"):
        assert fact in exchange.said("wan without text")


@pytest.mark.parametrize(
    ("name", "found", "wanted"),
    [
        ("wan with hunyuan's vae", "HunyuanVideo's (a TAEHV)", "MODEL is Wan 2.1"),
        ("wan with hunyuan's own vae", "HunyuanVideo's (a AutoencoderKL)", "MODEL is Wan 2.1"),
        ("hunyuan with wan's vae", "Wan 2.1's (a WanVAE)", "MODEL is HunyuanVideo"),
        ("hunyuan with wan's tiny vae", "Wan 2.1's (a TAEHV)", "MODEL is HunyuanVideo"),
    ],
)
def test_the_other_familys_vae_is_refused(name: str, found: str, wanted: str, exchange: Exchange) -> None:
    assert found in exchange.said(name)
    assert wanted in exchange.said(name)


@pytest.mark.parametrize(
    ("name", "width", "height", "frames"),
    [
        ("recipe", 64, 48, 17),
        ("fit", 64, 48, 17),
        ("fit to a width", 128, 80, 17),
        ("seconds", 64, 48, 9),
        ("rounded", 64, 48, 9),
        ("stock", 80, 48, 5),
        ("stock token replace", 64, 48, 9),
    ],
)
def test_sizes(name: str, width: int, height: int, frames: int, exchange: Exchange) -> None:
    samples = exchange.answers[name]["latent.samples"]
    assert samples.shape == (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    assert f"{width} x {height}, {frames} frames" in exchange.said(name)


def test_assumptions_and_contradictions_are_reported(exchange: Exchange) -> None:
    for job, facts in {
        "rounded": ("length is 7", "rounded to 9"),
        "seconds": ("length is 5", "seconds is", "(1.12 s at 8 fps)"),
        "stock": ("960 x 544", "129 frames", "24 fps", "assumed"),
        "stock without a size": ("no recipe", "960, 544 and 129"),
        "stock token replace": ("16 input channels", "token replacement", "assumed"),
    }.items():
        for fact in facts:
            assert fact in exchange.said(job)
    assert "assumed" not in exchange.said("token replace")


def test_text_that_the_training_did_not_use_is_noted(exchange: Exchange) -> None:
    assert "null prompt does not show this image" in exchange.said("prompted")
    assert "first 4 frames are dropped" in exchange.said("prompted")
    for fact in ("null prompt does not", "encoded for"):
        assert fact not in exchange.said("prompted as trained")
    for fact in ("encoded for Magic 1-For-1", "HunyuanVideo-I2V concat"):
        assert fact in exchange.said("prompted otherwise")
    assert "trained with the prompts of Wan 2.1. Use CLIP Text Encode" in exchange.said("wan prompted otherwise")


@pytest.mark.parametrize("name", ["stock token replace", "token replace"])
def test_token_replace_begins_with_the_image(name: str, exchange: Exchange) -> None:
    answer = exchange.answers[name]
    expected = exchange.encoded(resize_crop(exchange.photo, 48, 64))
    torch.testing.assert_close(answer["latent.samples"][:, :, :1], expected, atol=1e-3, rtol=1e-3)
    assert not answer["latent.samples"][:, :, 1:].any()
    assert answer["latent.noise_mask"][:, :, :1].sum() == 0
    assert answer["latent.noise_mask"][:, :, 1:].min() == 1
    assert answer["guiding_frame_index"] == 0
    assert answer["guidance"] == 6


@pytest.mark.parametrize("name", ["face", "faces"])
def test_the_crop_follows_the_face(name: str, exchange: Exchange) -> None:
    expected = exchange.encoded(resize_crop(exchange.photo, 48, 48, Box(70, 10, 20, 20)))
    found = exchange.answers[name]["concat_latent_image"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    without = exchange.answers["no face"]["concat_latent_image"]
    assert (found - without).abs().max() > 20 * (found - expected).abs().max()
    plain = exchange.encoded(resize_crop(exchange.photo, 48, 48))
    torch.testing.assert_close(without, plain, atol=1e-3, rtol=1e-3)


def test_impossible_faces_are_explained(exchange: Exchange) -> None:
    assert "no face" in exchange.said("no face")
    for fact in ("20 x 20 pixels at (400, 10)", "100 x 60"):
        assert fact in exchange.said("face elsewhere")
    for fact in ("x, y, width and height", "bboxes"):
        assert fact in exchange.said("malformed face")


LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2} | {
    "num_key_value_heads": 1,
    "vocab_size": 128320,
}
CLIP_L = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
VISION = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
TEMPLATES = [
    "HunyuanVideo (text only)",
    "HunyuanVideo-I2V concat",
    "HunyuanVideo-I2V token-replace",
    "Magic 1-For-1",
]
PROMPTS = ["", "she turns to the window and smiles", "word " * 300]


@dataclass(frozen=True)
class Encoded:
    """The answers of the encode node, its networks, and the trainer's encoders with the same networks."""

    answer: dict[str, Tensor]
    llama: LlamaModel
    trainer: dict[str, TextEncoder]
    image: Tensor
    projected: Tensor
    tokenizer: PreTrainedTokenizerFast

    def said(self, name: str) -> str:
        return bytes(self.answer[name].tolist()).decode()

    def hidden(self, before: str, after: str, projected: Tensor | None) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return transformers' hidden states of a text that contains image tokens, and the tokens before and after."""
        ids = [self.tokenizer.bos_token_id, *self.tokenizer(before, add_special_tokens=False).input_ids]
        behind = self.tokenizer(after, add_special_tokens=False).input_ids if after else []
        embed = self.llama.get_input_embeddings()
        parts = [embed(torch.tensor([ids]))]
        if projected is not None:
            parts += [projected[None], embed(torch.tensor([behind]))]
        with torch.no_grad():
            out = self.llama(inputs_embeds=torch.cat(parts, dim=1), output_hidden_states=True)
        return out.hidden_states, ids


@pytest.fixture(scope="module")
def encoded(
    comfyui_dir: Path, tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory
) -> Encoded:
    """Write a tiny Llama and CLIP-L with random weights under the key names that ComfyUI expects."""
    folder = tmp_path_factory.mktemp("encoders")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        llama = LlamaModel(LlamaConfig(**LLAMA, head_dim=128, rms_norm_eps=1e-5, rope_theta=500000.0)).eval()
        clip_l = CLIPTextModel(CLIPTextConfig(**CLIP_L, hidden_act="quick_gelu", eos_token_id=49407)).eval()
        for parameter in [*llama.parameters(), *clip_l.parameters()]:
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    save_file({f"model.{key}": value for key, value in llama.state_dict().items()}, folder / "llama.safetensors")
    save_file({f"text_model.{key}": value for key, value in clip_l.state_dict().items()}, folder / "clip_l.safetensors")
    image = torch.rand(1, 3, 90, 60, generator=torch.Generator().manual_seed(6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        vision = CLIPVisionConfig(**VISION, image_size=336, patch_size=14)
        config = LlavaConfig(vision_config=vision, text_config=llama.config, image_token_index=128257)
        llava = LlavaForConditionalGeneration(config).eval()
        llava.model.language_model = llama
        pixels = clip_pixels(image, 336, middle=True)
        with torch.no_grad():
            projected = torch.cat(list(llava.model.get_image_features(pixels).pooler_output)).reshape(576, 64)
    save_file({"projected": projected[None]}, folder / "in.st")
    job = {"run": "text_image", "llama": str(folder / "llama.safetensors"), "inputs": str(folder / "in.st")}
    job |= {"clip_l": str(folder / "clip_l.safetensors"), "llama_config": LLAMA, "clip_config": CLIP_L}
    rules = comfyui_dir / "comfy" / "text_encoders" / "llama_tokenizer" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(rules), bos_token="<|begin_of_text|>")
    lossy = json.loads(rules.read_text()) | {
        "normalizer": {"type": "Replace", "pattern": {"String": "\n"}, "content": ""}
    }
    (folder / "lossy.json").write_text(json.dumps(lossy))
    job |= {"tokenizer": str(rules), "lossy_tokenizer": str(folder / "lossy.json")}
    job |= {"models": _written_models(tiny, folder), "templates": TEMPLATES}
    (answer,) = stock_side([job | {"prompts": PROMPTS}])
    words = CLIPTokenizer.from_pretrained(comfyui_dir / "comfy" / "sd1_tokenizer")
    parts = (Llama(tokenizer, llava, folder), ClipL(words, clip_l))
    trainer = {
        "HunyuanVideo (text only)": HunyuanVideoText(*parts),
        "HunyuanVideo-I2V concat": HunyuanI2VText("hunyuan_i2v_concat", *parts),
        "HunyuanVideo-I2V token-replace": HunyuanI2VText("hunyuan_i2v_token_replace", *parts),
        "Magic 1-For-1": Magic141Text(*parts),
    }
    return Encoded(answer, llama, trainer, image, projected, tokenizer)


def _written_models(tiny: SimpleNamespace, folder: Path) -> dict[str, str]:
    """Write models whose files state how their prompts were encoded, or do not; return their paths by name."""
    files = {}
    for name, changes in {
        "silent": {},
        "magic141": {"prompt_template": "magic141"},
        "text": {"prompt_template": "hunyuan_video"},
    }.items():
        file = folder / f"{name}.safetensors"
        tiny.write_model(file, tiny.network(tiny.shape()), tiny.recipe("generator", **changes), tiny.prompt())
        files[name] = str(file)
    wan, replace = folder / "wan.safetensors", folder / "replace.safetensors"
    state = diffusers_to_file(WAN, tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO).state_dict())
    save_checkpoint(wan, state, tiny.recipe("teacher", family="wan"), None)
    network = tiny.network(tiny.shape(in_channels=16), TOKEN_REPLACE)
    tiny.write_model(replace, network, tiny.recipe("teacher", i2v_mode="token_replace"), tiny.prompt())
    return files | {"wan": str(wan), "stock 16": str(replace)}


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("title", TEMPLATES)
def test_states_are_those_of_the_trainers_encoder(title: str, number: int, encoded: Encoded) -> None:
    image = None if "text only" in title else encoded.image
    expected = encoded.trainer[title].encode(PROMPTS[number], image)
    found = encoded.answer[f"{title}.states.{number}"]
    assert found.shape == expected.text_states.shape
    torch.testing.assert_close(found, expected.text_states, atol=2e-4, rtol=1e-3)
    assert expected.pooled is not None
    torch.testing.assert_close(encoded.answer[f"{title}.pooled.{number}"], expected.pooled, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("title", "stride"), [(TEMPLATES[1], 2), (TEMPLATES[2], 4)])
def test_comfyuis_own_node_differs_in_the_last_state_alone(title: str, stride: int, encoded: Encoded) -> None:
    """It keeps the end of the user's turn, the release the blank line after the assistant's header."""
    for number in range(2):
        found = encoded.answer[f"{title}.states.{number}"]
        native = encoded.answer[f"native i2v.{stride}.{number}"]
        assert found.shape == native.shape
        torch.testing.assert_close(found[:, :-1], native[:, :-1], atol=1e-5, rtol=1e-5)
        assert (found[:, -1] - native[:, -1]).abs().max() > 1e-2


def test_the_models_file_decides_the_template(encoded: Encoded) -> None:
    assert torch.equal(encoded.answer["states.1"], encoded.answer["Magic 1-For-1.states.1"])
    assert torch.equal(encoded.answer["magic141.states.1"], encoded.answer["Magic 1-For-1.states.1"])
    assert "Note" not in encoded.said("magic141.said.1")
    assert torch.equal(encoded.answer["text.states.1"], encoded.answer["native.1"])
    assert torch.equal(encoded.answer["silent.states.1"], encoded.answer[f"{TEMPLATES[1]}.states.1"])
    assert "HunyuanVideo-I2V concat is assumed" in encoded.said("silent.said.1")
    assert "CLIP Text Encode with Wan's UMT5" in encoded.said("wan.said.1")
    # As by Portrait to video: 16 channels can take a start image by token replacement only.
    assert torch.equal(encoded.answer["stock 16.states.1"], encoded.answer[f"{TEMPLATES[2]}.states.1"])
    assert "HunyuanVideo-I2V token-replace is assumed" in encoded.said("stock 16.said.1")


def test_images_for_clip_are_prepared_as_by_comfyuis_node(stock_side: StockSide, tmp_path: Path) -> None:
    image = torch.rand(2, 90, 60, 3, generator=torch.Generator().manual_seed(8))
    save_file({"image": image}, tmp_path / "in.st")
    (answer,) = stock_side([{"run": "clip_pixels", "inputs": str(tmp_path / "in.st"), "side": 224}])
    for name, middle in (("center", True), ("none", False)):
        torch.testing.assert_close(answer[name], clip_pixels(image.movedim(-1, 1), 224, middle=middle))


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_image_states_are_llamas_last_of_every_fourth_token_after_the_header(number: int, encoded: Encoded) -> None:
    states = encoded.answer[f"states.{number}"]
    assert states.shape[1] == 146 + min(encoded.answer[f"native.{number}"].shape[1], 256)
    opening = (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are shown the picture with which a video begins. Tell what "
        "belongs into the video under six headings: 1. Who or what is in it, and what it is about. 2. How they look: "
        "faces, hair, clothes, colours, materials, sizes, how many there are and where each stands. 3. What they do, "
        "and how gestures, gaze and expression change from moment to moment. 4. The place around them and what fills "
        "the background. 5. Light, mood and style. 6. How the camera stands, frames and moves.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )
    hidden, ids = encoded.hidden(opening, "<|eot_id|>", encoded.projected)
    # The last token before the image is the blank line of the header.
    assert encoded.tokenizer.decode(ids[-4:]) == "<|start_header_id|>user<|end_header_id|>\n\n"
    behind = hidden[-1][:, len(ids) - 1 :]
    expected = torch.cat([behind[:, :1], behind[:, 1:577:4], behind[:, 577:]], dim=1)
    assert expected.shape[1] == 146
    torch.testing.assert_close(states[:, :146], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_text_states_are_hunyuanvideos_own(number: int, encoded: Encoded) -> None:
    text = encoded.answer[f"states.{number}"][:, 146:]
    template = (
        "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
        "1. The main content and theme of the video."
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
        "4. background environment, light, style and atmosphere."
        "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )
    hidden, ids = encoded.hidden(template + PROMPTS[number] + "<|eot_id|>", "", None)
    expected = hidden[-3][:, 95:][:, :256]
    assert len(ids) > 95
    assert len(ids) - 95 == encoded.answer[f"native.{number}"].shape[1]
    torch.testing.assert_close(text, expected, atol=2e-4, rtol=1e-3)
    assert torch.equal(text, encoded.answer[f"native.{number}"][:, :256])
    assert encoded.answer[f"pooled.{number}"].std() > 0.1
    assert torch.equal(encoded.answer[f"pooled.{number}"], encoded.answer[f"native_pooled.{number}"])


def test_long_prompts_and_wrong_encoders_are_reported(encoded: Encoded) -> None:
    assert encoded.said("said.0").startswith("Magic 1-For-1: 146 image tokens, ")
    assert "Note" not in encoded.said("said.1")
    assert "146 image tokens, 256 text tokens" in encoded.said("said.2")
    assert "reads 256" in encoded.said("said.2")
    assert encoded.answer[f"{TEMPLATES[1]}.states.2"].shape[1] == 288 + 252
    assert "reads 256" in encoded.said(f"{TEMPLATES[1]}.said.2")
    for job, facts in {
        "blind": ("projector", "llava_llama3_vision"),
        "other": ("llava_llama3 and clip_l", "DualCLIPLoader"),
        "lossy": ("tokenizer", "Use transformers 4"),
    }.items():
        for fact in facts:
            assert fact in encoded.said(job)
    assert "145 image tokens" in encoded.said("lossy")

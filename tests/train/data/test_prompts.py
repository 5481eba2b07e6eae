"""Encoding of prompts to files, with text encoders of a few layers in folders like those of real pipelines."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from magicdistill_core.errors import CheckpointError, OutputError
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.safetensors_file import read_metadata
from train.data.prompts import encode_prompt

WORDS = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", "a", "smiling", "face"])}
FIRST = "<|begin_of_text|>"
TEMPLATE = DEFAULT_PROMPT_TEMPLATE["template"].format("")


def tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of words with an end token, padded on the right."""
    made = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", WORDS["<end>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=77
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer like Llama 3's: bytes, its word boundaries, a first token. Each word of the template is one token."""
    made = Tokenizer(BPE())
    words = Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
    made.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = Bytes()
    marks = [FIRST, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]
    trainer = BpeTrainer(special_tokens=marks, min_frequency=1, initial_alphabet=ByteLevel.alphabet())
    made.train_from_iterator([TEMPLATE, "a smiling face"], trainer)
    made.post_processor = TemplateProcessing(single=f"{FIRST} $A", special_tokens=[(FIRST, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=FIRST, pad_token="<pad>", model_max_length=400)


def sizes(words: int) -> dict[str, int]:
    return {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": words}


def clip() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**sizes(len(WORDS)), intermediate_size=32, eos_token_id=WORDS["<end>"]))


def save(pipeline: HunyuanVideoPipeline | HunyuanVideoImageToVideoPipeline, folder: Path) -> Path:
    """A tokenizer folder with the class name that the releases use."""
    pipeline.save_pretrained(folder)
    for name, key in (("model_index.json", '"tokenizer"'), ("tokenizer/tokenizer_config.json", '"tokenizer_class"')):
        text = (folder / name).read_text()
        head, _, tail = text.partition(key)
        assert "TokenizersBackend" in tail
        (folder / name).write_text(head + key + tail.replace("TokenizersBackend", "LlamaTokenizerFast", 1))
    return folder


@pytest.fixture(scope="module")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    words = llama_tokenizer()
    llama = LlamaModel(LlamaConfig(**sizes(len(words)), intermediate_size=32))
    pipeline = HunyuanVideoPipeline(llama, words, None, None, None, clip(), tokenizer())
    return save(pipeline, tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture(scope="module")
def image_to_video(hunyuan_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same language model inside LLaVA, next to a vision model."""
    torch.manual_seed(1)
    words = llama_tokenizer()
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = LlamaConfig(**sizes(len(words)), intermediate_size=32)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    llava.model.language_model.load_state_dict(LlamaModel.from_pretrained(hunyuan_video / "text_encoder").state_dict())
    clip_l = CLIPTextModel.from_pretrained(hunyuan_video / "text_encoder_2")
    pipeline = HunyuanVideoImageToVideoPipeline(
        llava, words, None, None, None, clip_l, tokenizer(), CLIPImageProcessor()
    )
    return save(pipeline, tmp_path_factory.mktemp("image_to_video"))


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    folder = tmp_path_factory.mktemp("wan")
    WanPipeline(tokenizer(), UMT5EncoderModel(UMT5Config(**sizes)), None, None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("prompt", "tokens"), [("", 1), ("a smiling face", 4)])
@pytest.mark.parametrize("kind", ["hunyuan_video", "image_to_video"])
def test_hunyuan_videos_prompt_is_the_pipelines_without_padding(
    kind: str, prompt: str, tokens: int, tmp_path: Path, hunyuan_video: Path, request: pytest.FixtureRequest
) -> None:
    """Both pipelines use the text-to-video template and keep the prompt's words and the end of the turn."""
    out = tmp_path / "prompt.safetensors"
    encode_prompt(request.getfixturevalue(kind), prompt, out)
    unused = dict.fromkeys(("transformer", "vae", "scheduler", "tokenizer"))
    pipeline = HunyuanVideoPipeline.from_pretrained(hunyuan_video, dtype=torch.bfloat16, **unused)
    pipeline.register_modules(tokenizer=llama_tokenizer())
    with torch.no_grad():
        text, pooled, mask = pipeline.encode_prompt(prompt, device=torch.device("cpu"))
    found = load_null_prompt(out)
    assert int(mask.sum()) == found.text_states.shape[1] == tokens
    assert torch.equal(found.text_states, text[:, :tokens])
    assert found.pooled is not None
    assert torch.equal(found.pooled, pooled)
    assert read_metadata(out)["prompt"] == prompt


def test_a_tokenizer_that_does_not_keep_the_template_is_refused(hunyuan_video: Path, tmp_path: Path) -> None:
    """Refused: Llama 3's file read by the class that diffusers names, and a file without its first token."""
    folder, out = tmp_path / "pipeline", tmp_path / "prompt.safetensors"
    shutil.copytree(hunyuan_video, folder)
    spoiled = LlamaTokenizerFast.from_pretrained(folder / "tokenizer")
    ids = spoiled(TEMPLATE, add_special_tokens=False).input_ids
    assert "Describethevideobydetailing" in spoiled.decode(ids)
    spoiled.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match=r"expected 95.*Describethevideo"):
        encode_prompt(folder, "", out)
    short = llama_tokenizer()
    short.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    short.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="94 tokens, expected 95"):
        encode_prompt(folder, "", out)
    assert not out.exists()


def test_wans_prompt_is_the_pipelines_without_padding(wan: Path, tmp_path: Path) -> None:
    out = tmp_path / "prompt.safetensors"
    encode_prompt(wan, "a smiling face", out)
    unused = dict.fromkeys(("transformer", "transformer_2", "vae", "scheduler"))
    pipeline = WanPipeline.from_pretrained(wan, dtype=torch.bfloat16, **unused)
    ids = torch.tensor([[WORDS[word] for word in ("a", "smiling", "face", "<end>")]])
    with torch.no_grad():
        expected = pipeline.text_encoder(ids).last_hidden_state
    found = load_null_prompt(out)
    assert found.pooled is None
    assert torch.allclose(found.text_states.float(), expected.float(), atol=0.02)


def test_other_and_incomplete_pipelines_are_refused(hunyuan_video: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json.*HunyuanVideo or Wan"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="FluxPipeline"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    (tmp_path / "model_index.json").write_bytes((hunyuan_video / "model_index.json").read_bytes())
    with pytest.raises(CheckpointError, match=rf"(?s){re.escape(str(tmp_path))} .*tokenizer and text_encoder"):
        encode_prompt(tmp_path, "", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        encode_prompt(tmp_path / "no_pipeline", "", tmp_path / "file" / "out.safetensors")
    with pytest.raises(OutputError, match="is a folder"):
        encode_prompt(tmp_path / "no_pipeline", "", tmp_path)


@pytest.mark.parametrize(
    ("path", "contents", "message"),
    [
        ("text_encoder_2", None, r"no text_encoder_2/\*\.safetensors"),
        (
            "text_encoder/model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "cannot be used",
        ),
        ("text_encoder/config.json", b"[]", "cannot be used"),
        ("tokenizer/tokenizer.json", b"{}", "cannot be used"),
    ],
)
def test_errors_of_libraries_are_one_line_of_ours(
    path: str, contents: bytes | None, message: str, hunyuan_video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(hunyuan_video, folder)
    if contents is None:
        shutil.rmtree(folder / path)
    else:
        (folder / path).write_bytes(contents)
    with pytest.raises(CheckpointError, match=message) as raised:
        encode_prompt(folder, "", tmp_path / "out.safetensors")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700
    assert not (tmp_path / "out.safetensors").exists()


def test_text_states_that_are_not_finite_are_not_written(wan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(wan, folder)
    weights = next((folder / "text_encoder").glob("*.safetensors"))
    state = load_file(weights)
    name = next(name for name in state if name.endswith("final_layer_norm.weight"))
    state[name][0] = float("inf")
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="infinite values"):
        encode_prompt(folder, "a smiling face", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()

"""Folders like those of diffusers' pipelines: the true classes of transformers, with few layers and random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as TEXT_TEMPLATE
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
    DEFAULT_PROMPT_TEMPLATE as IMAGE_TEMPLATE,
)
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
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from magicdistill_core.prompt_templates import MAGIC141_IMAGE_TEMPLATE

WORDS = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", "a", "smiling", "face"])}
FIRST = "<|begin_of_text|>"
TEMPLATE = TEXT_TEMPLATE["template"].format("")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of words with an end token, padded on the right."""
    made = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", WORDS["<end>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=77
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer like Llama 3's: bytes, its word boundaries, a first token. Each word of the templates is one token."""
    made = Tokenizer(BPE())
    words = Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
    made.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = Bytes()
    marks = [FIRST, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>"]
    trainer = BpeTrainer(special_tokens=marks, min_frequency=1, initial_alphabet=ByteLevel.alphabet())
    texts = [TEMPLATE, IMAGE_TEMPLATE["template"].format(""), MAGIC141_IMAGE_TEMPLATE, "a smiling face word", "word"]
    made.train_from_iterator(texts, trainer)
    made.post_processor = TemplateProcessing(single=f"{FIRST} $A", special_tokens=[(FIRST, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=FIRST, pad_token="<pad>", model_max_length=400)


def _sizes(words: int) -> dict[str, int]:
    return {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": words}


def _clip_l() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**_sizes(len(WORDS)), intermediate_size=32, eos_token_id=WORDS["<end>"]))


def _save(pipeline: Any, folder: Path) -> Path:
    """A tokenizer folder with the class name that the releases use."""
    pipeline.save_pretrained(folder)
    for name, key in (("model_index.json", '"tokenizer"'), ("tokenizer/tokenizer_config.json", '"tokenizer_class"')):
        text = (folder / name).read_text()
        head, _, tail = text.partition(key)
        assert "TokenizersBackend" in tail
        (folder / name).write_text(head + key + tail.replace("TokenizersBackend", "LlamaTokenizerFast", 1))
    return folder


def write_hunyuan_video(folder: Path) -> Path:
    """A HunyuanVideo pipeline: Llama and CLIP-L."""
    torch.manual_seed(0)
    words = llama_tokenizer()
    llama = LlamaModel(LlamaConfig(**_sizes(len(words)), intermediate_size=32))
    return _save(HunyuanVideoPipeline(llama, words, None, None, None, _clip_l(), word_tokenizer()), folder)


def write_hunyuan_i2v(folder: Path, text_only: Path, mode: str = "latent_concat") -> Path:
    """A HunyuanVideo-I2V pipeline: the language model of `text_only` inside LLaVA, next to a vision model."""
    torch.manual_seed(1)
    words = llama_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = LlamaConfig(**_sizes(len(words)), intermediate_size=32)
    image, pad = words.convert_tokens_to_ids(["<image>", "<pad>"])
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, pad_token_id=pad)
    llava = LlavaForConditionalGeneration(config)
    llava.model.language_model.load_state_dict(LlamaModel.from_pretrained(text_only / "text_encoder").state_dict())
    clip_l = CLIPTextModel.from_pretrained(text_only / "text_encoder_2")
    processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    pipeline = HunyuanVideoImageToVideoPipeline(llava, words, None, None, None, clip_l, word_tokenizer(), processor)
    _save(pipeline, folder)
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(f'{{"image_condition_type": "{mode}"}}')
    return folder


def write_wan(folder: Path) -> Path:
    """A Wan pipeline: UMT5."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    WanPipeline(word_tokenizer(), UMT5EncoderModel(UMT5Config(**sizes)), None, None).save_pretrained(folder)
    return folder

"""Encoding of prompts to small files. Training and sampling read them and need no text encoder."""

import json
from pathlib import Path
from typing import Any

import torch

from magicdistill_core.errors import CheckpointError, MagicDistillError, cause
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.safetensors_file import write_safetensors
from magicdistill_core.writable import check_output_file

from .finite import not_finite

_INDEX = "model_index.json"
_PARTS = (
    "Expected a complete diffusers pipeline with its folders tokenizer and text_encoder (for HunyuanVideo tokenizer_2 "
    "and text_encoder_2 as well)."
)
_WAN_TOKENS = 512
# Tokens of the template before the prompt. HunyuanVideoPipeline removes their states.
_TEMPLATE_TOKENS = 95


def encode_prompt(pipeline: Path, prompt: str, out: Path, device: torch.device | str = "cpu") -> NullPrompt:
    """Encode a prompt with the text encoders of a diffusers pipeline, and write a file for `model.null_prompt`.

    HunyuanVideo's text-to-video template is used, even for an image-to-video pipeline. The image-to-video template also
    shows an image to the language model, so its result fits only that image.

    Args:
        pipeline: folder of a diffusers HunyuanVideo or Wan pipeline; only tokenizers and text encoders are read.
        prompt: the text; "" is the null prompt.
        out: the file (.safetensors) to write.
        device: device of the text encoders.

    Returns:
        The written text conditioning, in bfloat16 on the CPU, without padding tokens.

    Raises:
        OutputError: if `out` cannot be written. Nothing is loaded then.
        CheckpointError: if the folder holds no such pipeline, a part of it cannot be loaded, or its result is not
            finite.
    """
    check_output_file(out)
    kind = _kind(pipeline)
    _check_parts(pipeline, kind)
    try:
        encoded = (_hunyuan_video if "HunyuanVideo" in kind else _wan)(pipeline, kind, prompt, torch.device(device))
    except MagicDistillError:
        raise
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"The text encoders in {pipeline} need more memory than {device} has ({cause(error)}). Use --device cpu."
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"The text encoders in {pipeline} cannot be used ({cause(error)}). Download the folder again. {_PARTS}"
        ) from error
    for name, tensor in (("text states", encoded.text_states), ("pooled text", encoded.pooled)):
        if tensor is not None and (found := not_finite(tensor)):
            raise CheckpointError(
                f"The text encoders in {pipeline} made {name} with {found}. Nothing was written. Use --device cpu, or "
                f"download the folder again."
            )
    write_safetensors(out, null_prompt_tensors(encoded), {"prompt": prompt, "format": "pt"})
    return encoded


def _kind(pipeline: Path) -> str:
    index = pipeline / _INDEX
    advice = "Expected the folder of a diffusers HunyuanVideo or Wan pipeline."
    if not index.is_file():
        raise CheckpointError(f"{pipeline} has no {_INDEX}. {advice}")
    try:
        kind = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}). {advice}") from error
    if not kind.startswith(("HunyuanVideo", "Wan")):
        raise CheckpointError(f"{pipeline} holds a {kind}. {advice}")
    return kind


def _check_parts(pipeline: Path, kind: str) -> None:
    names = ["tokenizer", "text_encoder"]
    if kind.startswith("HunyuanVideo"):
        names += ["tokenizer_2", "text_encoder_2"]
    wanted = [(name, "*.json" if name.startswith("tokenizer") else "*.safetensors") for name in names]
    if missing := [f"{name}/{files}" for name, files in wanted if not any((pipeline / name).glob(files))]:
        raise CheckpointError(f"{pipeline} has no {', '.join(missing)}. {_PARTS}")


def _load(kind: Any, pipeline: Path, **components: Any) -> Any:
    return kind.from_pretrained(
        pipeline, dtype=torch.bfloat16, use_safetensors=True, local_files_only=True, **components
    )


def _hunyuan_video(pipeline: Path, kind: str, prompt: str, device: torch.device) -> NullPrompt:
    from diffusers import HunyuanVideoPipeline

    # These are loaded separately: Llama's tokenizer and, in an image-to-video pipeline, the language model of LLaVA.
    apart = ("tokenizer", "text_encoder") if "ImageToVideo" in kind else ("tokenizer",)
    components: dict[str, Any] = dict.fromkeys(("transformer", "vae", "scheduler", *apart))
    encoders = _load(HunyuanVideoPipeline, pipeline, **components)
    encoders.register_modules(tokenizer=_llama_tokenizer(pipeline / "tokenizer"))
    if "ImageToVideo" in kind:
        from transformers import LlavaForConditionalGeneration

        llava = _load(LlavaForConditionalGeneration, pipeline / "text_encoder")
        # Before transformers 4.52 the language model is an attribute of the outer model.
        encoders.register_modules(text_encoder=getattr(llava, "model", llava).language_model)
    encoders.to(device)
    with torch.no_grad():
        text, pooled, mask = encoders.encode_prompt(prompt, device=device)
    return NullPrompt(text[:, mask[0].bool()].cpu(), pooled.cpu())


def _llama_tokenizer(folder: Path) -> Any:
    """Load Llama 3's tokenizer, with the rules of its own file.

    Diffusers names the class LlamaTokenizerFast, which is Llama 2's. Under transformers 5 this class replaces the rules
    of the file by its own, and loses spaces and line breaks.

    Raises:
        CheckpointError: if the tokenizer changes HunyuanVideo's template, or splits it into another number of tokens.
    """
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    text, before = template.format(""), template.partition("{}")[0]
    kept = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False)
    count = len(tokenizer(before).input_ids)
    if kept != text or count != _TEMPLATE_TOKENS:
        raise CheckpointError(
            f"The tokenizer in {folder} is not the one that HunyuanVideo was trained with. It splits the template "
            f"before the prompt into {count} tokens, expected {_TEMPLATE_TOKENS}, and decodes the template as "
            f"{kept[:80]!r}... Download the folder again from a release of HunyuanVideo in diffusers' format "
            f"(tokenizer.json is Llama 3's)."
        )
    return tokenizer


def _wan(pipeline: Path, kind: str, prompt: str, device: torch.device) -> NullPrompt:
    from diffusers import WanPipeline

    components: dict[str, Any] = dict.fromkeys(("transformer", "transformer_2", "vae", "scheduler"))
    encoders = _load(WanPipeline, pipeline, **components).to(device)
    with torch.no_grad():
        text, _ = encoders.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=_WAN_TOKENS, device=device
        )
    # The pipeline pads with zeros. The padding is removed here; each call of the network pads again.
    tokens = int(text[0].abs().sum(dim=-1).nonzero().max()) + 1
    return NullPrompt(text[:, :tokens].cpu(), None)

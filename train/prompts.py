"""Prompts encoded once to small files, so that neither training nor sampling holds a text encoder."""

import json
from pathlib import Path
from typing import Any

import torch

from magicdistill_core.checkpoint import null_prompt_tensors, write_safetensors
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt

_INDEX = "model_index.json"
_WAN_TOKENS = 512


def encode_prompt(pipeline: Path, prompt: str, out: Path, device: torch.device | str = "cpu") -> NullPrompt:
    """Encode a prompt with the text encoders of a diffusers pipeline, and write it for `model.null_prompt`.

    HunyuanVideo's prompt goes through its text-to-video template, also for an image-to-video pipeline, whose own
    template would show the language model an image and so fit that image alone.

    Args:
        pipeline: folder of a diffusers HunyuanVideo or Wan pipeline; only tokenizers and text encoders are read.
        prompt: the text; "" is the null prompt.
        out: file (.safetensors) to write.

    Returns:
        What was written: in bfloat16, tokens without padding.

    Raises:
        CheckpointError: if the folder holds no such pipeline, or a part of it cannot be loaded.
    """
    kind = _kind(pipeline)
    try:
        encoded = (_hunyuan_video if "HunyuanVideo" in kind else _wan)(pipeline, kind, prompt, torch.device(device))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The text encoders in {pipeline} cannot be loaded ({error}). Expected a whole diffusers pipeline with its "
            f"folders tokenizer and text_encoder (for HunyuanVideo tokenizer_2 and text_encoder_2 as well)."
        ) from error
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
        raise CheckpointError(f"{index} cannot be understood ({error}). {advice}") from error
    if not kind.startswith(("HunyuanVideo", "Wan")):
        raise CheckpointError(f"{pipeline} holds a {kind}. {advice}")
    return kind


def _load(kind: Any, pipeline: Path, **components: Any) -> Any:
    return kind.from_pretrained(
        pipeline, dtype=torch.bfloat16, use_safetensors=True, local_files_only=True, **components
    )


def _hunyuan_video(pipeline: Path, kind: str, prompt: str, device: torch.device) -> NullPrompt:
    from diffusers import HunyuanVideoPipeline

    components: dict[str, Any] = dict.fromkeys(("transformer", "vae", "scheduler"))
    if "ImageToVideo" in kind:
        from transformers import LlavaForConditionalGeneration

        components["text_encoder"] = _load(LlavaForConditionalGeneration, pipeline / "text_encoder").language_model
    encoders = _load(HunyuanVideoPipeline, pipeline, **components).to(device)
    with torch.no_grad():
        text, pooled, mask = encoders.encode_prompt(prompt, device=device)
    return NullPrompt(text[:, mask[0].bool()].cpu(), pooled.cpu())


def _wan(pipeline: Path, kind: str, prompt: str, device: torch.device) -> NullPrompt:
    from diffusers import WanPipeline

    components: dict[str, Any] = dict.fromkeys(("transformer", "transformer_2", "vae", "scheduler"))
    encoders = _load(WanPipeline, pipeline, **components).to(device)
    with torch.no_grad():
        text, _ = encoders.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=_WAN_TOKENS, device=device
        )
    # The pipeline pads with zeros, and so does our network's caller.
    tokens = int(text[0].abs().sum(dim=-1).nonzero().max()) + 1
    return NullPrompt(text[:, :tokens].cpu(), None)

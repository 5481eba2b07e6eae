"""Folders of diffusers pipelines: which one it is, which prompt templates its encoders serve, and loading of a part."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from magicdistill_core.diffusers_folder import folder_i2v_mode
from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.prompt_templates import (
    HUNYUAN_I2V_CONCAT,
    HUNYUAN_I2V_TOKEN_REPLACE,
    HUNYUAN_VIDEO,
    MAGIC141,
    WAN,
    PromptTemplate,
    i2v_template,
)

from ..contents import content_of
from .base import PromptError

_INDEX = "model_index.json"
_PARTS = (
    "Expected a complete diffusers pipeline with its folders tokenizer and text_encoder (for HunyuanVideo tokenizer_2 "
    "and text_encoder_2 as well)."
)
_ADVICE = "Expected the folder of a diffusers HunyuanVideo or Wan pipeline."
# HunyuanVideo 1.5 has other text encoders under the same folder names.
_OTHERS = ("HunyuanVideo15",)


def templates_of(pipeline: Path) -> tuple[PromptTemplate, ...]:
    """Return the prompt templates for which a pipeline has the encoders.

    Args:
        pipeline: folder of a diffusers pipeline.

    Raises:
        CheckpointError: if it is not the folder of a known pipeline.
    """
    kind = _kind(pipeline)
    if kind.startswith("Wan"):
        return (WAN,)
    if "ImageToVideo" in kind:
        return (HUNYUAN_VIDEO, HUNYUAN_I2V_CONCAT, HUNYUAN_I2V_TOKEN_REPLACE, MAGIC141)
    return (HUNYUAN_VIDEO,)


def own_template(pipeline: Path) -> PromptTemplate:
    """Return the prompt template that the pipeline itself uses: for HunyuanVideo-I2V that of its transformer.

    Args:
        pipeline: folder of a diffusers pipeline.

    Raises:
        CheckpointError: if it is not the folder of a known pipeline, or its transformer's configuration is damaged.
    """
    kind = _kind(pipeline)
    if kind.startswith("Wan"):
        return WAN
    return i2v_template(folder_i2v_mode(pipeline) or "concat") if "ImageToVideo" in kind else HUNYUAN_VIDEO


def checked(pipeline: Path, template: PromptTemplate | None) -> PromptTemplate:
    """Return the template to use, after checking that the pipeline's folder has the encoders for it.

    Args:
        pipeline: folder of a diffusers pipeline.
        template: the wanted template; None is the pipeline's own.

    Raises:
        CheckpointError: if the folder is not that of a known pipeline, or a part is missing.
        PromptError: if the pipeline's encoders are of another family.
    """
    possible = templates_of(pipeline)
    template = template or own_template(pipeline)
    if template not in possible:
        raise PromptError(
            f"{pipeline} is a {_kind(pipeline)}, whose text encoders serve the prompt templates "
            f"{', '.join(possible)}, not {template}. Choose one of them, or name the pipeline of the model's release."
        )
    names = ["tokenizer", "text_encoder"]
    if template != WAN:
        names += ["tokenizer_2", "text_encoder_2"]
    wanted = [(name, "*.json" if name.startswith("tokenizer") else "*.safetensors") for name in names]
    if missing := [f"{name}/{files}" for name, files in wanted if not any((pipeline / name).glob(files))]:
        raise CheckpointError(f"{pipeline} has no {', '.join(missing)}. {_PARTS}")
    return template


def files_sha256(pipeline: Path) -> str:
    """Return a sha256 of the names and contents of the tokenizers' and text encoders' files (see `contents.py`).

    Args:
        pipeline: folder of a diffusers pipeline.

    Raises:
        OSError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    for part in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        for file in sorted((pipeline / part).glob("*")):
            if file.is_file():
                digest.update(f"{part}/{file.name} {content_of(file).sha256}\n".encode())
    return digest.hexdigest()


def has_llava(pipeline: Path) -> bool:
    """Return whether a HunyuanVideo pipeline's text encoder is LLaVA (image-to-video) and not Llama alone."""
    return "ImageToVideo" in _kind(pipeline)


def load_network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a frozen network of transformers from a folder.

    Args:
        kind: its class.
        folder: its folder.
        device: where to put it.
        dtype: dtype of its weights.

    Raises:
        CheckpointError: if it cannot be loaded, or needs more memory than there is.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # transformers partitions every network that it loads while a ZeRO-3 configuration of DeepSpeed is alive.
    unset_hf_deepspeed_config()
    try:
        network = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        return network.eval().requires_grad_(False).to(device)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"The text encoder in {folder} needs more memory than {device} has ({cause(error)}). Use --device cpu."
        ) from error
    except Exception as error:
        raise unusable(folder, error) from error


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """Load a tokenizer of transformers from a folder.

    Args:
        kind: its class.
        folder: its folder.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise unusable(folder, error) from error


def unusable(folder: Path, error: Exception) -> CheckpointError:
    """Return the error for a part that cannot be used.

    Args:
        folder: its folder.
        error: the error of the library.
    """
    return CheckpointError(f"{folder} cannot be used ({cause(error)}). Download the folder again. {_PARTS}")


def _kind(pipeline: Path) -> str:
    index = pipeline / _INDEX
    if not index.is_file():
        raise CheckpointError(f"{pipeline} has no {_INDEX}. {_ADVICE}")
    try:
        kind = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}). {_ADVICE}") from error
    if not kind.startswith(("HunyuanVideo", "Wan")) or kind.startswith(_OTHERS):
        raise CheckpointError(f"{pipeline} holds a {kind}. {_ADVICE}")
    return kind

"""Model files from other tools: pickles of training frameworks, prefixes of tensor names, quantised weights."""

import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .captions import CAPTION_PREFIX, is_caption
from .errors import CheckpointError
from .files import enough_memory
from .layouts.wrapper_names import without_wrappers

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl"})
# The keys under which training frameworks store the weights: DeepSpeed's `mp_rank_00_model_states.pt` uses "module",
# Magic 1-For-1's `dmd_4_step_i2v.pth` and Lightning use "state_dict".
_ENVELOPES = ("module", "state_dict", "model", "generator")
# Tensors of texts, which are next to the network under every prefix.
_TEXTS = ("null_prompt.", CAPTION_PREFIX)
# If a file holds several networks, the first of these prefixes is used: the network to sample from, not its scores.
_PREFERRED = ("", "model.diffusion_model.", "model.", "generator.", "hydit_unimodel.guidance_model.feedforward_model.")
QUANTISED = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
"""The dtypes of quantised weights."""
# Names of the tensors that quantisers add to the weights: ComfyUI's formats, quanto, bitsandbytes.
QUANTISATION_MARKS = (
    ".weight_scale",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".weight_global_scale",
    ".input_global_scale",
    ".pre_quant_scale",
    ".input_scale",
    ".scale_weight",
    ".scale_input",
    ".comfy_quant",
    "scaled_fp8",
    "._data",
    "._scale",
    ".absmax",
    ".quant_map",
)


def is_pickle_name(path: Path) -> bool:
    """Return whether a file name has a suffix of PyTorch's pickles, such as `.pt` or `.ckpt`."""
    return path.suffix.lower() in PICKLE_SUFFIXES


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read the weights of a PyTorch pickle, from the top level or from under a known key of a training framework.

    Only tensors and plain values are unpickled (`weights_only`), so no code in the file runs. The tensors are mapped
    into memory, not copied, if the file's format allows it.

    Args:
        path: the file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        CheckpointError: if the file is damaged, holds other objects, or has no weights under a known key.
    """
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is a pickle that holds more than tensors and plain values{_object_of(error)}. Opening such a "
            f"file could run any code. Convert it once to .safetensors in an environment that you trust, and use the "
            f"result. (This also happens with weights quantised by quanto or torchao: use the unquantised file.)"
        ) from error
    except CheckpointError:
        raise
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path.name} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch file. It is truncated or "
            f"damaged. Copy or download it again."
        ) from error
    return _find_tensors(content, path.name)


def _load(path: Path) -> object:
    try:
        with enough_memory(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # PyTorch's file format before version 1.6 cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _object_of(error: Exception) -> str:
    """Return the name of the object that PyTorch refused to unpickle, in brackets; empty if its message has none."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


def _find_tensors(content: object, source: str) -> dict[str, Tensor]:
    found = content
    while isinstance(found, Mapping):
        tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = next((found[name] for name in _ENVELOPES if name in found), None)
        if inner is None:
            break
        found = inner
    names = ", ".join(sorted(map(str, found))[:6]) if isinstance(found, Mapping) else type(found).__name__
    raise CheckpointError(
        f"{source} holds no weights under a known key: found {names or 'an empty file'}, expected tensors at the top "
        f"level or under {', '.join(_ENVELOPES)}. For a ZeRO-3 checkpoint of DeepSpeed, gather the partitions with its "
        f"zero_to_fp32.py first."
    )


def unwrapped(state: Mapping[str, Tensor], marks: Iterable[str], source: str) -> dict[str, Tensor]:
    """Remove the prefix and the wrapper names that a pipeline or a training framework added to the tensor names.

    Args:
        state: the tensors of the file.
        marks: tensor names that identify a transformer. The text before such a name is the prefix.
        source: the file's name for messages.

    Returns:
        The tensors with the prefix, renamed, and null prompt and captions if there are any. All tensors if no mark is
        found.

    Raises:
        CheckpointError: if there are several transformers, and none of them has a known prefix; or if two tensors have
            the same name without wrappers.
    """
    state = _without_wrappers(state, source)
    found = sorted({key.removesuffix(mark) for mark in marks for key in state if _ends(key, mark)})
    if not found or found == [""]:
        return dict(state)
    if len(found) == 1:
        prefix = found[0]
    else:
        known = [prefix for prefix in _PREFERRED if prefix in found]
        if not known:
            raise CheckpointError(
                f"{source} holds {len(found)} transformers, under {', '.join(found)}, and it is not known which one to "
                f"use. Save the one that you need to a separate file."
            )
        prefix = known[0]
    kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and k != prefix}
    kept |= {key: value for key, value in state.items() if key.startswith(_TEXTS)}
    if prefix and len(kept) < len(state):
        others = Counter(k.split(".")[0] for k in state if not k.startswith((prefix, *_TEXTS)))
        listed = ", ".join(f"{name} ({count})" for name, count in others.most_common(6))
        logger.info("%s: using the tensors under %s, ignoring %s", source, prefix, listed)
    return kept


def _without_wrappers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        # A caption is a text: what looks like a wrapper in it is a part of the text.
        name = key if is_caption(key) else without_wrappers(key)
        if name in out:
            raise CheckpointError(
                f"{source} holds {name} twice: under {key}, and without or under another wrapper module. Save the "
                f"network that you need to a separate file."
            )
        out[name] = tensor
    return out


def _ends(key: str, mark: str) -> bool:
    return key == mark or key.endswith(f".{mark}")


def is_quantised(state: Mapping[str, Tensor]) -> bool:
    """Return whether any tensor is int8, uint8 or fp8, or is a quantiser's scale.

    Args:
        state: the tensors of the file, by name.
    """
    return bool(_quantised(state))


def refuse_quantised(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse quantised weights, because their precision is lost.

    Args:
        state: the tensors of the file, by name.
        source: the file's name for error messages.

    Raises:
        CheckpointError: see `is_quantised`.
    """
    low = _quantised(state)
    if not low:
        return
    kinds = {value.dtype for value in state.values() if value.dtype in QUANTISED}
    named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "scales next to the weights"
    shown = ", ".join(sorted(low)[:2]) + (f" and {len(low) - 2} more" if len(low) > 2 else "")
    raise CheckpointError(
        f"{source} is quantised already ({shown}; {named}), so its weights have lost precision. Quantise the bf16, "
        f"fp16 or fp32 release of the same model (for HunyuanVideo and Wan the file without fp8, int8 or GGUF in its "
        f"name, or the diffusers folder)."
    )


def _quantised(state: Mapping[str, Tensor]) -> list[str]:
    return [key for key, value in state.items() if value.dtype in QUANTISED or key.endswith(QUANTISATION_MARKS)]

"""Describe a weights file from its header: kind, layout, sizes and recipe.

A *recipe* is the sampling settings and the origin of the weights, stored in the file's metadata.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path

import torch

from magicdistill_core.captions import is_caption, pop_captions
from magicdistill_core.checkpoint import Checkpoint, parse_checkpoint
from magicdistill_core.diffusers_folder import folder_i2v_mode, weight_files
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families import all_families, architecture_knowing
from magicdistill_core.families.base import Architecture
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.layouts.dialects import is_lora_name, lora_part, other_kind
from magicdistill_core.layouts.lora import file_name, known_modules
from magicdistill_core.null_prompt import NULL_TEXT_KEY
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import TensorInfo, read_header, read_metadata, read_tensors
from magicdistill_core.streamed import DTYPE_NAMES
from magicdistill_core.taehv import TAEHV
from magicdistill_core.wrappers import QUANTISATION_MARKS, is_pickle_name, read_pickle

from ..data.dataset_index import INDEX_NAME
from ..data.index_file import read_index
from ..data.text_index import TextIndex

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U16": 2}  # the rest: 1
_NAMES = defaultdict(lambda: "other", DTYPE_NAMES)

Header = Mapping[str, TensorInfo]


def inspect_file(path: Path, with_hash: bool = False) -> dict[str, str]:
    """Describe a transformer, a LoRA, a TAEHV VAE or a latent dataset.

    Args:
        path: a safetensors file, a pickle of tensors, a diffusers folder or a latent dataset.
        with_hash: add the sha256 that recipes use to identify a teacher or a base. This reads the complete file.

    Returns:
        Values by label, the most important first.

    Raises:
        MagicDistillError: if a file is missing, unsafe or damaged, or a folder contains several networks.
    """
    if (path / INDEX_NAME).is_file():
        return _dataset(path)
    files = weight_files(path)
    header: dict[str, TensorInfo] = {}
    recipe = None
    if path.is_file() and is_pickle_name(path):
        header = {key: TensorInfo(_NAMES[v.dtype], tuple(v.shape)) for key, v in read_pickle(path).items()}
    else:
        for file in files:
            header |= read_header(file)
            recipe = recipe or Recipe.from_metadata(read_metadata(file), file.name)
    is_lora = any(map(is_lora_name, header))
    if is_lora and len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(
            f"The folder {path} contains several networks or LoRAs ({names}). Give the path of one file."
        )
    facts = {"file": str(path), "size": _size(sum(file.stat().st_size for file in files))}
    if is_lora:
        facts |= _lora(header, files)
    elif header.keys() == (vae := _taehv_shapes()).keys() and all(header[k].shape == vae[k] for k in vae):
        facts |= {"kind": "video autoencoder", "layout": "TAEHV"}
    else:
        facts |= _transformer(header, recipe, path)
    facts |= {"parameters": _parameters(header), "dtypes": _dtypes(header)}
    if recipe is not None:
        facts |= {f"recipe: {name}": f"{value}" for name, value in recipe.model_dump(exclude_none=True).items()}
    else:
        facts["recipe"] = "none"
    if with_hash:
        facts["sha256"] = weights_sha256(path)
    return facts


def _size(count: int) -> str:
    mebi = count / 1024**2
    return f"{count:,} bytes ({mebi / 1024:.2f} GiB)" if mebi >= 1024 else f"{count:,} bytes ({mebi:.2f} MiB)"


def _dataset(folder: Path) -> dict[str, str]:
    index = read_index(folder)
    videos = f" of {len(names)} videos" if (names := index.videos) else ""
    return {
        "file": str(folder),
        "size": _size(index.bytes),
        "kind": "latent dataset",
        "family": index.family,
        "samples": f"{index.count}{videos}",
        "geometry": f"{index.width} x {index.height}, {index.frames} frames, {index.fps:g} fps",
        "dtypes": index.dtype,
        "vae sha256": index.vae_sha256,
        "captions": "none" if index.texts is None else _texts(index.texts),
    }


def _texts(texts: TextIndex) -> str:
    lengths = [count for file in texts.files for count in file.tokens] or [0]
    kind = ", encoded with the start images" if texts.sees_image else ""
    return f"{len(set(texts.captions))} different ones, of {min(lengths)} to {max(lengths)} tokens{kind}"


def _parameters(header: Header) -> str:
    counted = sum(prod(info.shape) for key, info in header.items() if not _is_extra(key))
    return f"{counted:,} ({counted / 1e6:.2f} M)"


def _is_extra(key: str) -> bool:
    return key.startswith("null_prompt.") or is_caption(key) or key.endswith((".alpha", *QUANTISATION_MARKS))


def _dtypes(header: Header) -> str:
    weights = Counter[str]()
    for key, info in header.items():
        if not _is_extra(key):
            weights[info.dtype] += prod(info.shape) * _BYTES.get(info.dtype, 1)
    total = sum(weights.values()) or 1
    return ", ".join(f"{dtype} ({share / total:.0%} of the bytes)" for dtype, share in weights.most_common())


def _taehv_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in TAEHV().state_dict().items()}


def _transformer(header: Header, recipe: Recipe | None, path: Path) -> dict[str, str]:
    scales = [key for key in header if key.endswith(QUANTISATION_MARKS)]
    meta = {key: info.without_data() for key, info in header.items() if key not in scales}
    try:
        mode = folder_i2v_mode(path)
        checkpoint = parse_checkpoint(meta, recipe, path.name, i2v_mode=mode)
    except CheckpointError as error:
        return {"kind": "unknown", "why": str(error)}
    return {
        "kind": f"{checkpoint.architecture.title} transformer",
        "layout": _layout(header, checkpoint),
        "conditioning": _conditioning(checkpoint),
        **checkpoint.shape.facts(),
        **({"quantised": f"yes ({len(scales)} scales)"} if scales else {}),
        "null prompt": _null_prompt(header),
        **_captions(header),
    }


def _conditioning(checkpoint: Checkpoint) -> str:
    channels = checkpoint.shape.in_channels
    try:
        description = checkpoint.family().title
    except CheckpointError:
        fitting = [
            f"{family.title} (i2v_mode={family.i2v_mode})"
            for family in all_families()
            if family.architecture is checkpoint.architecture and family.in_channels == channels
        ]
        description = " or ".join(fitting) or "unknown"
    return f"{description}; {channels} channels"


def _layout(header: Header, checkpoint: Checkpoint) -> str:
    architecture = checkpoint.architecture
    if any(key.endswith(architecture.diffusers_mark) for key in header):
        return "diffusers"
    # The prefix of a wrapper ends in a dot and precedes a key of the file layout.
    first = next(key for key in header if key.endswith(architecture.file_mark))
    prefix = first.removesuffix(architecture.file_mark)
    own = all(f"{prefix}{key}" in header for key in checkpoint.state)
    spelling = architecture.file_spelling if own else "ComfyUI"
    return f"{spelling}, under {prefix}" if prefix else spelling


def _null_prompt(header: Header) -> str:
    if NULL_TEXT_KEY not in header:
        return "none"
    return f"{header[NULL_TEXT_KEY].shape[1]} tokens"


def _captions(header: Header) -> dict[str, str]:
    names = pop_captions({key: info.without_data() for key, info in header.items() if is_caption(key)})
    return {"captions": "; ".join(names)} if names else {}


def _lora(header: Header, files: list[Path]) -> dict[str, str]:
    others = sorted({kind for key in header if (kind := other_kind(key)) is not None})
    if others:
        return {"kind": f"{' and '.join(others)} adapter; only ComfyUI's Load LoRA can apply it"}
    parts = {key: found for key in header if (found := lora_part(key)) is not None}
    downs = {found[:2]: header[key] for key, found in parts.items() if found[2] == "down"}
    differences = [found for found in parts.values() if found[2] not in ("down", "up", "alpha")]
    prefixes = sorted({prefix or "no prefix" for prefix, _, _ in parts.values()})
    names = {module for _, module, _ in parts.values()}
    architecture = architecture_knowing(names)
    known = known_modules(architecture.layout, names)
    spelling = "unknown" if not known else _lora_spelling(architecture, names)
    halves = "lora_A/lora_B" if any(".lora_A" in key for key in header) else "lora_down/lora_up"
    return {
        "kind": "LoRA",
        "layout": f"{spelling} names under {', '.join(prefixes)}; {halves if downs else 'no pairs'}",
        "modules": f"{len(names)}, of which {known} belong to {architecture.title}",
        **({"full differences": f"{len(differences)} tensors"} if differences else {}),
        "ranks": ", ".join(map(str, sorted({info.shape[0] for info in downs.values()}))) or "none",
        "alpha": _alphas(files),
        **_captions(header),
    }


def _lora_spelling(architecture: Architecture, names: Collection[str]) -> str:
    in_file = sum(file_name(architecture.layout, name) is not None for name in names)
    return f"{architecture.file_spelling}/ComfyUI" if in_file == len(names) else "diffusers"


def _alphas(files: list[Path]) -> str:
    values = set()
    for path in files:
        tensors = read_pickle(path) if is_pickle_name(path) else read_tensors(path)[0]
        values |= {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    return ", ".join(f"{value:g}" for value in sorted(values)) or "not stored (loaders use the rank)"

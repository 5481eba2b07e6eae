"""Naming dialects of LoRA files: translate their module names into the names of a layout map.

A *dialect* is the way in which a trainer names the tensors of a LoRA file. Dialects differ in three ways:

- the prefix before a module's name: `diffusion_model.`, `transformer.`, `base_model.model.`, or `lora_unet_` before a
  name with underscores instead of dots;
- the suffix after it: `lora_A`/`lora_B` (with or without an adapter's name), `lora_down`/`lora_up`, or
  `lora.down`/`lora.up`;
- whether q, k and v are one fused module or three modules.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache

from ..errors import CheckpointError
from .modules import LayoutMap
from .wrapper_names import without_wrappers

_DOTTED_PREFIX = re.compile(r"^((base_model\.model|diffusion_model|transformer|model|module|unet|pipe|dit)\.)+")
# Wan-Fun's trainer writes two underscores, because the name of its root module is empty. Tencent's trainer uses its own
# prefix.
_FLAT_PREFIX = re.compile(r"^(lora_unet|lora_transformer|lycoris|Hunyuan_video_I2V_lora)_+(module_)*")
_PARTS = (
    (re.compile(r"(\.(lora_A(\.[^.]+)?\.weight|lora_A|lora_down\.weight)|[._]lora\.down\.weight)$"), "down"),
    (re.compile(r"(\.(lora_B(\.[^.]+)?\.weight|lora_B|lora_up\.weight)|[._]lora\.up\.weight)$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    # Step-distilled LoRAs of Wan also contain full differences of small tensors, in addition to the low-rank pairs.
    # ComfyUI's Extract and Save Lora (lora_type full_diff) writes files of full differences only. LyCORIS calls those
    # of norms w_norm and b_norm.
    (re.compile(r"\.(diff|w_norm)$"), "weight"),
    (re.compile(r"\.(diff_b|b_norm)$"), "bias"),
    (re.compile(r"\.diff_m$"), "modulation"),
)
# Tensors that only other kinds of adapters have. Ignoring them would produce another model than the author's.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with a middle convolution",
    "lora_E": "AdaLoRA",
    "vera_lambda": "VeRA",
    "on_input": "IA3",
    "set_weight": "weight-replacing",
}
# The fused projections of diffusers and their parts.
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
_BLOCK = re.compile(r"(?<=blocks_)\d+(?=_)")
_ADAPTER_METADATA = "lora_adapter_metadata"


def lora_part(key: str) -> tuple[str, str, str] | None:
    """Split a tensor's name in a LoRA file into prefix, module and part; None if it is no LoRA name.

    Args:
        key: the tensor's name, such as `diffusion_model.img_in.proj.lora_A.weight`.

    Returns:
        The prefix (may be empty), the module's name, and the part. The parts of a pair are `down`, `up` and `alpha`.
        The parts of full differences are `weight`, `bias` and `modulation`.
    """
    key = without_wrappers(key)
    for pattern, part in _PARTS:
        if (end := pattern.search(key)) is not None:
            name = key[: end.start()]
            found = _DOTTED_PREFIX.match(name) or _FLAT_PREFIX.match(name)
            prefix = found.group() if found else ""
            return prefix, name.removeprefix(prefix), part
    return None


def is_lora_name(key: str) -> bool:
    """Return whether only LoRA files and files of other adapters have a tensor of this name.

    Args:
        key: the tensor's name in the file.
    """
    part = lora_part(key)
    return (part is not None and part[2] != "alpha") or other_kind(key) is not None


def other_kind(key: str) -> str | None:
    """Return the kind of adapter that a tensor name belongs to, such as `DoRA`; None if it may be a plain LoRA.

    Args:
        key: the tensor's name in the file.
    """
    last = key.rpartition(".")[2] if not key.endswith(".weight") else key.removesuffix(".weight").rpartition(".")[2]
    return next((kind for mark, kind in _OTHER_KINDS.items() if last.startswith(mark)), None)


def dotted(layout: LayoutMap, name: str) -> str:
    """Restore the dots in a module's name that a dialect wrote with underscores.

    Args:
        layout: the map that contains the names with dots.
        name: the module's name without prefix.

    Returns:
        The name with dots. A name that already has dots, or that the map does not contain, is returned unchanged.
    """
    if "." in name:
        return name
    names = _flat_names(layout)
    spelled = f"{name}_weight"
    # Look up the unchanged name first, and then the name after every alias. With underscores, the pattern of an alias
    # may also match a name that is already canonical.
    for pattern, replacement in (("", ""), *layout.aliases):
        spelled = re.sub(pattern.replace(r"\.", "_"), replacement.replace(".", "_"), spelled)
        block = match.group() if (match := _BLOCK.search(spelled)) else ""
        if (found := names.get(_BLOCK.sub("{i}", spelled).removesuffix("_weight"))) is not None:
            return found.replace("{i}", block)
    return name


@cache
def _flat_names(layout: LayoutMap) -> dict[str, str]:
    parts = {part for module in layout.modules for part in module.parts}
    fused = {
        f"{stem}.{whole}"
        for stem in {part.rpartition(".")[0] for part in parts}
        for whole, pieces in _FUSED.items()
        if parts.issuperset(f"{stem}.{piece}" for piece in pieces)
    }
    # A name that exists in both layouts is the same module. The file layout comes last and overwrites diffusers'.
    names = [*sorted(parts | fused), *(module.file for module in layout.modules)]
    return {name.replace(".", "_"): name for name in names}


def pieces_of(layout: LayoutMap, name: str) -> tuple[str, ...] | None:
    """Return the modules that a fused projection of diffusers consists of, in the order of its rows.

    Args:
        layout: the map that contains the modules.
        name: a module's name in diffusers' layout, such as `transformer_blocks.0.attn.to_qkv`.

    Returns:
        The names in diffusers' layout (here those ending in `to_q`, `to_k` and `to_v`); None if the name is not a
        fused projection.
    """
    stem, _, last = name.rpartition(".")
    pieces = tuple(f"{stem}.{piece}" for piece in _FUSED.get(last, ()))
    known = pieces and all(layout.diffusers_module(piece) is not None for piece in pieces)
    return pieces if known else None


def stated_alpha(metadata: Mapping[str, str] | None, source: str) -> Callable[[str, int], float | None]:
    """Return a function `(module, rank) -> alpha` that reads the metadata of a LoRA saved by diffusers.

    It uses peft's `alpha_pattern` and the rank-stabilised scale `alpha / sqrt(rank)`. It returns None where the
    metadata states no alpha.

    Args:
        metadata: the file's text entries; None for a file without metadata.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if the metadata exists but cannot be understood.
    """
    text = (metadata or {}).get(_ADAPTER_METADATA)
    if text is None:
        return lambda module, rank: None
    try:
        # The keys look like `transformer.lora_alpha`: one configuration per component of a pipeline.
        config = {str(key).rpartition(".")[2]: value for key, value in dict(json.loads(text)).items()}
        general = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        patterns = {
            without_wrappers(str(name)): float(value) for name, value in (config.get("alpha_pattern") or {}).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"The adapter metadata in {source} ({_ADAPTER_METADATA}) cannot be understood, so the scale of the LoRA is "
            f"unknown. Expected peft's configuration as JSON. Save the LoRA again with a current version of diffusers."
        ) from error
    stabilised = bool(config.get("use_rslora"))

    def alpha(module: str, rank: int) -> float | None:
        named = (value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", module))
        value = next(named, general)
        return value * rank**0.5 if value is not None and stabilised else value

    return alpha

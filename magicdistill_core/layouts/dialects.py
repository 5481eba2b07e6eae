"""How LoRA files in the wild name what they change, brought to the names of a layout map.

Three things vary: what stands before a module's name (`diffusion_model.`, `transformer.`, `base_model.model.`, or
`lora_unet_` before a name whose dots became underscores), what stands behind it (`lora_A`/`lora_B`, also with an
adapter's name, `lora_down`/`lora_up`, or `lora.down`/`lora.up`), and whether q, k and v are one module or three.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache

from ..errors import CheckpointError
from .modules import LayoutMap

_DOTTED_PREFIX = re.compile(r"^((base_model\.model|diffusion_model|transformer|model|module|unet|pipe|dit)\.)+")
# With two underscores where a trainer names modules from the nameless root on (Wan-Fun's); Tencent's own trainer has a
# prefix of its own.
_FLAT_PREFIX = re.compile(r"^(lora_unet|lora_transformer|lycoris|Hunyuan_video_I2V_lora)_+")
_PARTS = (
    (re.compile(r"\.(lora_A(\.[^.]+)?\.weight|lora_A|lora[_.]down\.weight)$"), "down"),
    (re.compile(r"\.(lora_B(\.[^.]+)?\.weight|lora_B|lora[_.]up\.weight)$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    # Step-distilled LoRAs of Wan bring, beside the pairs, whole differences of small tensors.
    (re.compile(r"\.diff$"), "weight"),
    (re.compile(r"\.diff_b$"), "bias"),
    (re.compile(r"\.diff_m$"), "modulation"),
)
# Tensors that only other kinds of adapters have; to leave them out would give another model than the file's.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with a middle convolution",
}
# diffusers' fused projections and what they consist of.
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
_BLOCK = re.compile(r"(?<=blocks_)\d+(?=_)")
_ADAPTER_METADATA = "lora_adapter_metadata"


def lora_part(key: str) -> tuple[str, str, str] | None:
    """What a tensor's name in a LoRA file says: prefix, module and part; None for other names.

    Parts are `down`, `up` and `alpha` of a pair, and `weight`, `bias` and `modulation` for whole differences.
    """
    for pattern, part in _PARTS:
        if (end := pattern.search(key)) is not None:
            name = key[: end.start()]
            found = _DOTTED_PREFIX.match(name) or _FLAT_PREFIX.match(name)
            prefix = found.group() if found else ""
            return prefix, name.removeprefix(prefix), part
    return None


def other_kind(key: str) -> str | None:
    """The kind of adapter, other than LoRA, that a tensor of this name belongs to."""
    last = key.rpartition(".")[2] if not key.endswith(".weight") else key.removesuffix(".weight").rpartition(".")[2]
    return next((kind for mark, kind in _OTHER_KINDS.items() if last.startswith(mark)), None)


def dotted(layout: LayoutMap, name: str) -> str:
    """A module's name with its dots where a dialect wrote underscores; other names as they are."""
    if "." in name:
        return name
    names = _flat_names(layout)
    spelled = f"{name}_weight"
    # As it is first, and again after every alias: flattened, an alias may fit what is canonical already.
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
    # Where a name stands in both layouts, it is the same module; the file's comes last and wins.
    names = [*sorted(parts | fused), *(module.file for module in layout.modules)]
    return {name.replace(".", "_"): name for name in names}


def pieces_of(layout: LayoutMap, name: str) -> tuple[str, ...] | None:
    """The diffusers modules that a fused projection of diffusers (such as `attn.to_qkv`) consists of, in row order."""
    stem, _, last = name.rpartition(".")
    pieces = tuple(f"{stem}.{piece}" for piece in _FUSED.get(last, ()))
    known = pieces and all(layout.diffusers_module(piece) is not None for piece in pieces)
    return pieces if known else None


def stated_alpha(metadata: Mapping[str, str] | None, source: str) -> Callable[[str, int], float | None]:
    """How the metadata that diffusers writes beside a LoRA gives the alpha of a module: `(module, rank) -> alpha`.

    peft's `alpha_pattern` and its rank-stabilised scale `alpha / sqrt(rank)` are taken into account.

    Raises:
        CheckpointError: if the metadata is there but cannot be understood.
    """
    text = (metadata or {}).get(_ADAPTER_METADATA)
    if text is None:
        return lambda module, rank: None
    try:
        # Keys are `transformer.lora_alpha` and the like: one configuration for each component of a pipeline.
        config = {str(key).rpartition(".")[2]: value for key, value in dict(json.loads(text)).items()}
        general = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        patterns = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The adapter metadata in {source} cannot be understood ({error}), so that the LoRA's scale is unknown. "
            f"Save it again with a current version of diffusers."
        ) from error
    stabilised = bool(config.get("use_rslora"))

    def alpha(module: str, rank: int) -> float | None:
        named = (value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", module))
        value = next(named, general)
        return value * rank**0.5 if value is not None and stabilised else value

    return alpha

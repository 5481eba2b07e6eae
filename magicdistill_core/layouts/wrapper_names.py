"""Remove the names of PyTorch's wrapper modules from tensor names.

A wrapper holds the wrapped module under its own attribute, which stays in the names of a saved state. For example, a
network compiled block by block saves `double_blocks.0._orig_mod.img_attn_qkv.weight`.
"""

import re

# torch.compile, DistributedDataParallel, FullyShardedDataParallel (today and before PyTorch 2), activation checkpoints,
# Lightning Fabric.
_WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
_DOTTED = re.compile(rf"(^|(?<=\.))({'|'.join(_WRAPPERS)})(\.|$)")
# Trainers in kohya's style write `.` as `_`, so a wrapper is preceded by two underscores, or begins the name. A flat
# `module` cannot be told from a part of another name.
_FLAT_NAMES = "|".join(name for name in _WRAPPERS if name[0] == "_")
_FLAT = re.compile(rf"(?:(^|_)(?:{_FLAT_NAMES})_|_(?:{_FLAT_NAMES})$)")


def without_wrappers(name: str) -> str:
    """Return a tensor's or module's name without the names of wrapper modules, wherever they stand.

    Args:
        name: the name, with dots, or with underscores instead of dots as in some LoRA files.
    """
    first, dot, rest = _DOTTED.sub("", name).removesuffix(".").partition(".")
    while (shorter := _FLAT.sub(lambda found: found[1] or "", first)) != first:
        first = shorter
    return f"{first}{dot}{rest}"

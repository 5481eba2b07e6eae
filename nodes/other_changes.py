"""Find what other nodes have changed in a MODEL and its CONDITIONING, so that a record does not claim the contrary.

ComfyUI keeps every change of a MODEL with the MODEL: weight patches (LoRAs, merges), object patches, wrappers, options
of the sampling. This pack knows its own changes; the rest comes from other nodes, and only its kind is known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from comfy.hooks import Hook, HookGroup
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST

from .attachments import attached_to
from .lora_keyframes import StepKeyframes

_PACK = __name__.rpartition(".")[0]
_SAMPLING = "model_sampling"
_NETWORK = "diffusion_model"
# What a CONDITIONING may contain besides text and start image. The defaults of `strength` and the range change nothing.
_CONDITIONS = ("control", "gligen", "area", "mask", "start_percent", "end_percent", "strength", "reference_latents")
_UNCHANGED = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@dataclass(frozen=True)
class OtherChanges:
    """What other nodes changed.

    Attributes:
        descriptions: each change in a few words, in no particular order; empty if there is none.
        may_add_loras: whether some of them may be LoRAs.
        replace_weights: whether the weights are no longer those of the loaded file, because models were merged.
    """

    descriptions: tuple[str, ...]
    may_add_loras: bool
    replace_weights: bool


def other_changes(model: ModelPatcher, conditioning: list[list], latent: Mapping[str, object]) -> OtherChanges:
    """Return what nodes of other packs and of ComfyUI changed.

    Args:
        model: the MODEL.
        conditioning: its CONDITIONING.
        latent: the LATENT that is sampled.
    """
    patched, merged = _other_weights(model)
    hooks = [hook for _, values in conditioning for hook in hooks_of(values) if not is_own_hook(hook)]
    objects = [name for name, value in model.object_patches.items() if not _known_object(model, name, value)]
    adding = [f"patched weights: {patched}"] if patched else []
    adding += [f"merged weights: {merged}"] if merged else []
    adding += [f"hooks in the conditioning: {len(hooks)}"] if hooks else []
    adding += [f"injection {name}" for name in model.injections]
    adding += [f"additional model {name}" for name, models in model.additional_models.items() if models]
    adding += [f"weight wrapper of {name}" for name in model.weight_wrapper_patches]
    adding += [f"object patch {name}" for name in objects if name.startswith(_NETWORK)]
    others = [f"object patch {name}" for name in objects if not name.startswith(_NETWORK)]
    others += [f"model option {name}" for name in _other_options(model.model_options)]
    others += [f"transformer option {name}" for name in _other_options(model.model_options["transformer_options"])]
    for kind, added in (("wrapper", model.wrappers), ("callback", model.callbacks)):
        others += [f"{kind} {key or name}" for name, by_key in added.items() for key in _other_options(by_key)]
    found = {
        name
        for _, values in conditioning
        for name in _CONDITIONS
        if values.get(name) is not None and values[name] != _UNCHANGED.get(name)
    }
    others += [f"conditioning {name}" for name in sorted(found)]
    # Token replacement keeps the start image by a mask of its own.
    keeps_image = any("guiding_frame_index" in values for _, values in conditioning)
    if latent.get("noise_mask") is not None and not keeps_image:
        others.append("noise mask")
    return OtherChanges(tuple(dict.fromkeys(adding + others)), bool(adding), bool(merged))


def hooks_of(values: Mapping[str, object]) -> list[Hook]:
    """Return the hooks in the values of a conditioning."""
    group = values.get("hooks")
    return group.hooks if isinstance(group, HookGroup) else []


def is_own_hook(hook: Hook) -> bool:
    """Return whether *LoRA strength per step* attached a hook."""
    return isinstance(hook.hook_keyframe, StepKeyframes)


def _other_weights(model: ModelPatcher) -> tuple[int, int]:
    """Return how many weights other nodes patched, and how many they merged with those of another model."""
    attached = attached_to(model)
    own = {id(patch) for patches in (attached.patches if attached is not None else ()) for patch in patches.values()}
    patched, merged = 0, 0
    for entries in model.patches.values():
        # ComfyUI's form of a patch: its strength, its value, a factor on the weight, and two more.
        others = [entry for entry in entries if id(entry[1]) not in own and (entry[0] != 0 or entry[2] != 1)]
        # A merge contains the weight of the other model as a list.
        merging = any(isinstance(entry[1], list) or entry[2] != 1 or _is_replacement(entry[1]) for entry in others)
        patched, merged = patched + bool(others and not merging), merged + merging
    return patched, merged


def _is_replacement(value: object) -> bool:
    return isinstance(value, tuple) and value[:1] == ("set",)


def _known_object(model: ModelPatcher, name: str, value: object) -> bool:
    """Return whether an object patch is this pack's, or a shift, which the schedule of the record replaces."""
    if name == _SAMPLING:
        same = getattr(value, "multiplier", None) == getattr(model.model.model_sampling, "multiplier", None)
        return isinstance(value, CONST) and same
    attached = attached_to(model)
    return _is_own(value) or (attached is not None and any(name in patches for patches in attached.patches))


def _other_options(options: Mapping[str, object]) -> list[str]:
    """Return the names of the options with a part that is not this pack's."""
    return [name for name, value in options.items() if name != "transformer_options" and not all(_own_parts(value))]


def _own_parts(value: object) -> Iterator[bool]:
    """Yield for each part of an option whether it is this pack's."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _own_parts(part)
    else:
        yield _is_own(value)


def _is_own(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith(f"{_PACK}.")

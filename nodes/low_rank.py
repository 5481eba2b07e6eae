"""A LoRA as native weight patches: ComfyUI's offloading, hooks and unpatching handle it like any other LoRA."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from comfy.model_base import WAN21, HunyuanVideo
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError, ConfigError
from ..magicdistill_core.families import family_named, hunyuan_video, wan
from ..magicdistill_core.families.base import Architecture
from ..magicdistill_core.layouts.modules import listing
from ..magicdistill_core.lora_file import LoraFile, load_lora_for
from .attachments import attached_to, known_family

NETWORK = "diffusion_model."


@dataclass(frozen=True)
class FittedLora:
    """The parts of a LoRA that fit a MODEL.

    Attributes:
        file: the LoRA.
        patches: for each weight of the MODEL, the change that ComfyUI adds to it at strength 1.
        parameters: the same for bare parameters outside modules (Wan's modulations), which ComfyUI never patches.
        matched: the number of the file's modules that fit.
        misses: the file's modules that do not fit, each with the reason if it is known.
    """

    file: LoraFile
    patches: dict[str, object]
    parameters: dict[str, Tensor]
    matched: int
    misses: tuple[str, ...]

    def summary(self) -> str:
        """Return one line: how many modules matched, and a remark if the file contains no alpha."""
        alpha = "" if self.file.alpha_stated else ", no alpha in the file: the rank is used as alpha"
        return f"matched {self.matched}/{self.matched + len(self.misses)} modules{alpha}"

    def warnings(self, model: ModelPatcher) -> list[str]:
        """Return notes about modules that were left out and about a base other than the one in the LoRA's recipe.

        Waits for the sha256 of the base if the recipe names one.

        Args:
            model: the MODEL that the LoRA was matched with.
        """
        notes = []
        if self.misses:
            notes.append(
                f"{len(self.misses)} modules of {self.file.source} do not fit this model and were left out: "
                f"{listing(list(self.misses), 6)}."
            )
        recipe, base = self.file.recipe, attached_to(model)
        family = known_family(model)
        if recipe is not None and family not in (None, family_named(recipe.family, recipe.i2v_mode)):
            assert family is not None
            notes.append(
                f"{self.file.source} was made for {recipe.family}, start image {recipe.i2v_mode}, but the model is "
                f"{family.architecture.title}: {family.title}. Load the base that the LoRA was trained on."
            )
        # The hash of a diffusers folder never equals a file's hash, even with the same weights.
        wanted = recipe.base_hash if recipe is not None and recipe.base_kind is None else None
        found = base.sha256() if wanted is not None and base is not None else None
        if wanted is not None and found is not None and found != wanted:
            assert base is not None
            assert base.path is not None
            notes.append(
                f"{self.file.source} was trained on a base with sha256 {wanted[:12]}..., but {base.path.name} has "
                f"{found[:12]}...: the result will differ from that run, slightly if the base is the same model in "
                f"another precision or in one file instead of a folder. Load the base that its recipe names."
            )
        return notes


def network_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """Return the network's parameters and buffers by their names in the MODEL.

    They are read from the modules, because a state dict contains what a layer chooses to save: scales, packed weights
    of other shapes, and (in packs for GGUF files) entries that no module has.
    """
    network = model.model.get_submodule(NETWORK.removesuffix("."))
    with model.use_ejected():
        named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {f"{NETWORK}{name}": tensor for name, tensor in named}


def fit_lora(model: ModelPatcher, path: str) -> FittedLora:
    """Read a LoRA and match it with a MODEL from any loader, plain or quantised.

    Args:
        model: the MODEL; it is not changed.
        path: the LoRA file.

    Raises:
        CheckpointError: if the MODEL is of no known family, the file is not a LoRA, or none of its modules fits.
    """
    architecture, hidden = _network(model)
    lora = load_lora_for(architecture, Path(path), hidden)
    weights = {
        architecture.layout.canonical(key.removeprefix(NETWORK)): (key, tuple(tensor.shape))
        for key, tensor in network_weights(model).items()
    }
    changes: dict[str, tuple[str, tuple[int, ...]]]
    changes = {name: (f"{name}.weight", (len(half.up), half.down.shape[1])) for name, half in lora.branches.items()}
    changes |= {key: (key, tuple(difference.shape)) for key, difference in lora.differences.items()}
    patches: dict[str, object] = {}
    parameters: dict[str, Tensor] = {}
    matched: set[str] = set()
    misses: dict[str, str] = {}
    for name, (weight, shape) in changes.items():
        key, found = weights.get(weight, ("", None))
        if found is not None and (found == shape or _as_matrix(found) == shape):
            if name in lora.branches:
                branch = lora.branches[name]
                patches[key] = LoRAAdapter(set(), (branch.up, branch.down, branch.alpha, None, None, None))
            elif architecture.layout.file_parameter(weight) is not None:
                parameters[key] = lora.differences[name]
            else:
                # ComfyUI skips a difference of another shape, also if it is the matrix of a convolution.
                patches[key] = ("diff", (lora.differences[name].reshape(found),))
            matched.update(lora.origins[name])
        else:
            why = "absent from the model" if found is None else f"{list(shape)}, {list(found)} in the model"
            misses |= {origin: f"{origin} ({why})" for origin in lora.origins[name]}
    missed = (*(text for origin, text in misses.items() if origin not in matched), *lora.misses)
    pairs = [patch for patch in patches.values() if isinstance(patch, LoRAAdapter)]
    if not (pairs if lora.branches else patches or parameters):
        raise CheckpointError(
            f"{lora.source} matches 0/{len(missed)} modules of this model; these do not fit: "
            f"{listing(list(missed), 3)}. The LoRA belongs to another base: load the base that it was trained on."
        )
    return FittedLora(lora, patches, parameters, len(matched), missed)


def apply_lora(model: ModelPatcher, lora: FittedLora, weight: float) -> ModelPatcher:
    """Return a clone of a MODEL with the weights `theta + weight * zeta` (MagicDistillation, Eq. 5 and 6).

    theta are the weights of the MODEL, zeta is the LoRA's change at strength 1.

    Args:
        model: the MODEL; it is not changed.
        lora: the LoRA, matched with this MODEL.
        weight: the strength; 0 changes nothing, and a negative one subtracts the LoRA.

    Raises:
        ConfigError: if the weight is not a finite number.
    """
    if not isfinite(weight):
        raise ConfigError(
            f"The LoRA's weight (strength) is {weight}, expected a finite number. Set it to 1 if in doubt."
        )
    clone = model.clone()
    clone.add_patches(lora.patches, weight)
    for key, difference in lora.parameters.items():
        old = clone.get_model_object(key)
        new = old.detach().float() + weight * difference.to(old.device, torch.float32)
        clone.add_object_patch(key, torch.nn.Parameter(new.to(old.dtype), requires_grad=False))
    return clone


def _network(model: ModelPatcher) -> tuple[Architecture, int]:
    """Return the architecture of a MODEL and its hidden size."""
    config = model.model.model_config.unet_config
    if isinstance(model.model, HunyuanVideo):
        return hunyuan_video.ARCHITECTURE, config["hidden_size"]
    if isinstance(model.model, WAN21):
        return wan.ARCHITECTURE, config["dim"]
    raise CheckpointError(
        f"The MODEL is a {type(model.model).__name__}, expected HunyuanVideo or Wan 2.1. Load the base with Load "
        f"few-step model, with ComfyUI's Load Diffusion Model, or from a GGUF file."
    )


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a convolution's weight, flattened to the matrix `[out, in]` that acts on its patches."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    return (shape[0] if shape else 1, columns)

"""A LoRA's branches as native weight patches, so that ComfyUI's offloading and unpatching treat them as any LoRA."""

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.lora import LoRAAdapter

from ..magicdistill_core.branch import branch_scale
from ..magicdistill_core.checkpoint import LoraFile
from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from ..magicdistill_core.layouts.modules import listing

_PREFIX = "diffusion_model."


def apply_branches(model: ModelPatcher, lora: LoraFile, weight: float) -> ModelPatcher:
    """A clone of `model` with `theta + weight * zeta` (MagicDistillation, Eq. 5 and 6).

    Raises:
        CheckpointError: if a branch has no module in the model, or another shape than it.
    """
    weights = {
        HUNYUAN_VIDEO.canonical(key.removeprefix(_PREFIX)): (key, tuple(tensor.shape))
        for key, tensor in model.model_state_dict(filter_prefix=_PREFIX).items()
    }
    misfits = []
    for name, branch in lora.branches.items():
        expected = (branch.up.shape[0], branch.down.shape[1])
        found = weights.get(f"{name}.weight", ("", None))[1]
        if found != expected:
            misfits.append(f"{name} {list(expected)} ({'absent' if found is None else f'{list(found)} in the model'})")
    if misfits:
        count = len(lora.branches)
        raise CheckpointError(
            f"{lora.source} matches {count - len(misfits)}/{count} modules of this model; these do not fit: "
            f"{listing(misfits, 3)}. It belongs to another base: load the one that it was trained on."
        )
    clone = model.clone()
    for name, branch in lora.branches.items():
        # With no alpha the adapter's own scale is 1, so that the strength is the whole factor.
        adapter = LoRAAdapter(set(), (branch.up, branch.down, None, None, None, None))
        clone.add_patches({weights[f"{name}.weight"][0]: adapter}, branch_scale(weight, branch.alpha, branch.rank))
    return clone

"""The record of a run: everything that determined a video, as JSON, to be stored in the video file."""

import json
import tomllib
from functools import cache
from pathlib import Path

import node_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..magicdistill_core.lora_schedule import strength_at
from .attachments import Attached, attached_to, known_family
from .other_changes import OtherChanges, hooks_of, is_own_hook
from .sampling_settings import Settings

_LORAS = "magicdistill_loras"
# The entry of a record that Save portrait video reads.
DROPPED_FRAMES = "dropped_frames"
_SHOWN = 6
_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@cache
def pack_version() -> str:
    """Return the version of this pack, from pyproject.toml."""
    return tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"]


def note_lora(conditioning: list[list], name: str, strengths: list[float]) -> list[list]:
    """Return a CONDITIONING that also states which LoRA is attached to it, for `run_record`.

    Args:
        conditioning: the CONDITIONING with the LoRA; it is not changed.
        name: the LoRA's file name.
        strengths: one strength per step; the last one is repeated.
    """
    return node_helpers.conditioning_set_values(conditioning, {_LORAS: ((name, tuple(strengths)),)}, append=True)


def run_record(
    model: ModelPatcher,
    conditioning: list[list],
    settings: Settings,
    sigmas: Tensor,
    seed: int,
    guidance: float | None,
    changes: OtherChanges,
) -> str:
    """Return as JSON what this pack knows of a run. What it does not know is null, or an entry with null.

    These are the facts about a MODEL from another loader, the file of a merged MODEL, and the LoRAs of other nodes. The
    prompt, the text encoders and the VAE are not part of it.

    Waits for the sha256 of the model file, which has been computed in the background since the file was loaded.

    Args:
        model: the MODEL that was sampled.
        conditioning: its conditioning, which names the LoRAs attached to it (see `note_lora`).
        settings: steps, shift and sampler.
        sigmas: the noise levels, `[steps + 1]`.
        seed: the seed of the starting noise.
        guidance: the input of the network's guidance embedding; None if it has none.
        changes: what other nodes changed.
    """
    attached, family = attached_to(model), known_family(model)
    loaded = None if changes.replace_weights else attached
    path = loaded.path if loaded is not None else None
    recipe = attached.recipe if attached is not None else None
    record = {
        "magicdistill": pack_version(),
        "checkpoint": path.name if path is not None else None,
        "sha256": loaded.sha256() if loaded is not None else None,
        "weight_dtype": loaded.weight_dtype if loaded is not None else None,
        "family": family.architecture.name if family is not None else None,
        "i2v_mode": family.i2v_mode if family is not None else None,
        "kind": loaded.recipe.kind if loaded is not None and loaded.recipe is not None else None,
        "loras": None if changes.replace_weights else _loras(attached, conditioning, settings.steps, changes),
        "other_changes": list(changes.descriptions),
        "seed": seed,
        "steps": settings.steps,
        "shift": settings.shift,
        "sampler": settings.sampler,
        "sigmas": sigmas.tolist(),
        "guidance": guidance,
        "image_in_noise": 0.0 if recipe is None else recipe.image_in_noise,
        DROPPED_FRAMES: 0 if recipe is None else recipe.dropped_frames,
    }
    return json.dumps(record)


def _loras(
    attached: Attached | None, conditioning: list[list], steps: int, changes: OtherChanges
) -> list[dict[str, object]]:
    """Return the known LoRAs, and an entry with null if there may be more."""
    on_model = [{"name": name, "strength": weight} for name, weight in (attached.loras if attached is not None else ())]
    tied = [
        {"name": name, "strength_per_step": [strength_at(strengths, step) for step in range(steps)]}
        for name, strengths in dict.fromkeys(lora for _, values in conditioning for lora in values.get(_LORAS, ()))
    ]
    # Another node may have removed or added hooks after the LoRA was noted.
    kept = all(len(values.get(_LORAS, ())) == sum(map(is_own_hook, hooks_of(values))) for _, values in conditioning)
    unknown = changes.may_add_loras or not kept or (attached is None and bool(changes.descriptions))
    return on_model + (tied if kept else []) + ([{"name": None, "strength": None}] if unknown else [])


def recorded_drop(record: str | None) -> int:
    """Return how many frames at the beginning a record asks to drop; 0 without a record, or for another text.

    Args:
        record: the text at the input record of Save portrait video.
    """
    try:
        value = json.loads(record or "{}").get(DROPPED_FRAMES, 0)
    except (ValueError, AttributeError):
        return 0
    return value if isinstance(value, int) and value > 0 else 0


def changes_note(changes: OtherChanges) -> list[str]:
    """Return a note for the user if other nodes changed something; else no note."""
    if not changes.descriptions:
        return []
    names = list(changes.descriptions)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    lost = " The file is not named, because models were merged." if changes.replace_weights else ""
    return [
        f"other nodes changed the MODEL or the CONDITIONING ({shown}). The record names these changes, but it cannot "
        f"say how to repeat them: keep the workflow.{lost}"
    ]

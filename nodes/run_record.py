"""The record of a run: everything that determined a video, as JSON, to be stored in the video file."""

import json
import tomllib
from functools import cache
from pathlib import Path

import node_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..magicdistill_core.lora_schedule import strength_at
from .attachments import attached_to, known_family
from .sampling_settings import Settings

_LORAS = "magicdistill_loras"
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
) -> str:
    """Return as JSON everything needed to repeat a run. Facts unknown for a MODEL from another loader are null.

    Waits for the sha256 of the model file, which has been computed in the background since the file was loaded.

    Args:
        model: the MODEL that was sampled.
        conditioning: its conditioning, which names the LoRAs attached to it (see `note_lora`).
        settings: steps, shift and sampler.
        sigmas: the noise levels, `[steps + 1]`.
        seed: the seed of the starting noise.
        guidance: the input of the network's guidance embedding; None if it has none.
    """
    attached, family = attached_to(model), known_family(model)
    recipe = attached.recipe if attached is not None else None
    path = attached.path if attached is not None else None
    tied = dict.fromkeys(lora for _, values in conditioning for lora in values.get(_LORAS, ()))
    record = {
        "magicdistill": pack_version(),
        "checkpoint": path.name if path is not None else None,
        "sha256": attached.sha256() if attached is not None else None,
        "family": family.architecture.name if family is not None else None,
        "i2v_mode": family.i2v_mode if family is not None else None,
        "kind": recipe.kind if recipe is not None else None,
        "loras": [
            {"name": name, "strength": strength} for name, strength in (attached.loras if attached is not None else ())
        ]
        + [
            {"name": name, "strength_per_step": [strength_at(strengths, step) for step in range(settings.steps)]}
            for name, strengths in tied
        ],
        "seed": seed,
        "steps": settings.steps,
        "shift": settings.shift,
        "sampler": settings.sampler,
        "sigmas": sigmas.tolist(),
        "guidance": guidance,
    }
    return json.dumps(record)

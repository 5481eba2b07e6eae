"""Jobs about the record of a run after other nodes have changed its MODEL or CONDITIONING."""

import importlib
import json

import comfy.hooks
import comfy.sd
import comfy.utils
import folder_paths
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_model_advanced import (
    ModelComputeDtype,
    ModelSamplingDiscrete,
    ModelSamplingSD3,
    RescaleCFG,
)
from comfy_extras.nodes_model_merging import ModelMergeSimple
from jobs_common import letters, load_pack, run_node
from torch import Tensor


def job_records(job: dict) -> dict[str, Tensor]:
    """Return the records of runs with a MODEL changed in many ways, and the notes for the user, as JSON by name."""
    nodes = load_pack()
    load = importlib.import_module("pack.nodes.load_model").load_model
    records, changes = (importlib.import_module(f"pack.nodes.{name}") for name in ("run_record", "other_changes"))
    settings = importlib.import_module("pack.nodes.sampling_settings").Settings(4, 5.0, "euler")
    folder_paths.add_model_folder_path("loras", job["loras"])
    model, teacher = load(job["model"], {}), load(job["teacher"], {})
    bare = [[torch.zeros(1), {}]]
    out = {}

    def note(name: str, model: ModelPatcher, conditioning: list = bare, latent: dict | None = None) -> None:
        found = changes.other_changes(model, conditioning, latent or {})
        record = records.run_record(model, conditioning, settings, torch.tensor([1.0, 0.0]), 0, None, found)
        out[name] = json.loads(record) | {"notes": records.changes_note(found)}

    note("plain", model)
    note("fp8", load(job["model"], {"dtype": torch.float8_e4m3fn}))
    for ratio in (0.0, 0.5, 1.0):
        note(f"merge {ratio:g}", ModelMergeSimple().merge(model, teacher, ratio)[0])
    scores = run_node(nodes.RealFakeLora, model=model, lora_name=job["fake"], weight_real=0.25, weight_fake=1.0)
    note("own lora", scores[0])
    lora = comfy.utils.load_torch_file(job["lora"])
    note("own and stock lora", comfy.sd.load_lora_for_models(scores[0], None, lora, 1.0, 0)[0])
    (after,) = run_node(
        nodes.LoadLora,
        model=comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0],
        lora_name=job["generator"],
        strength=0.5,
    )
    note("stock lora, then own", after)
    note("bypass lora", comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0)[0])
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    note("hook", model, node_helpers.conditioning_set_values(bare, {"hooks": hooks}))
    given = {"model": model, "conditioning": bare, "lora_name": job["generator"], "strengths": "1, 0", "steps": 0}
    (tied,) = run_node(nodes.LoraSteps, **given)
    note("own hook", model, tied)
    note("own and stock hook", model, comfy.hooks.set_hooks_for_conditioning(tied, hooks))
    note("own hook removed", model, node_helpers.conditioning_set_values(tied, {"hooks": hooks}))
    note("shift", ModelSamplingSD3().patch(model, 9.0)[0])
    note("eps", ModelSamplingDiscrete().patch(model, "eps", False)[0])
    note("dtype", ModelComputeDtype().patch(model, "fp16")[0])
    note("rescale", RescaleCFG().patch(model, 0.7)[0])
    cached = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    note("easycache", run_node(EasyCacheNode, model=model, **cached)[0])
    wrapped, patched = model.clone(), model.clone()
    wrapped.set_model_unet_function_wrapper(lambda call, args: call(args["input"], args["timestep"], **args["c"]))
    note("function wrapper", wrapped)
    patched.set_model_attn1_patch(lambda *args: args)
    note("attention patch", patched)
    note("control", model, node_helpers.conditioning_set_values(bare, {"control": object(), "strength": 1.0}))
    mask = {"noise_mask": torch.ones(1)}
    note("mask", model, bare, mask)
    stock = comfy.sd.load_diffusion_model(job["model"])
    note("stock loader", comfy.sd.load_lora_for_models(stock, None, lora, 1.0, 0)[0])
    note("token replace", load(job["replace"], {}).clone(), [[torch.zeros(1), {"guiding_frame_index": 0}]], mask)
    return {"records": letters(json.dumps(out))}

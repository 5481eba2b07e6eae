"""Jobs about LoRAs: key names, bases with packed weights, and a strength for every step."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from jobs_common import load_pack, run_node, velocity
from packed import packed_model
from safetensors.torch import load_file
from torch import Tensor


def job_loras(job: dict) -> dict[str, Tensor]:
    """Apply LoRA files to one base with the pack's node and, for those in `stock`, with the stock loader."""
    nodes = load_pack()
    for folder in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(folder, str(Path(job["model"]).parent))
    inputs = load_file(job["inputs"])
    more = {}
    if "features" in inputs:
        more["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=inputs["features"])
    bases = {"stock": comfy.sd.load_diffusion_model(job["model"])}
    settings = {"weight_dtype": "default", "start_image_mode": "from the file"}
    (bases["ours"],) = run_node(nodes.LoadModel, unet_name=Path(job["model"]).name, **settings)
    out = {f"base {name}": velocity(base, inputs, **more) for name, base in bases.items()}
    for name, base in bases.items():
        for file, strength in job["loras"]:
            (patched,) = run_node(nodes.LoadLora, model=base, lora_name=file, strength=strength)
            out[f"{file} on {name}"] = velocity(patched, inputs, **more)
            attached = patched.get_attachment("magicdistill")
            assert attached.loras[-1] == (file, strength)
            out[f"{file} on {name}: shift"] = torch.tensor(patched.get_model_object("model_sampling").shift)
            out[f"{file} on {name}: steps"] = torch.tensor(attached.recipe.steps if attached.recipe else 0)
    for file, strength in job["loras"]:
        lora = comfy.utils.load_torch_file(str(Path(job["model"]).with_name(file)), safe_load=True)
        patched, _ = comfy.sd.load_lora_for_models(bases["stock"], None, lora, strength, 0.0)
        out[f"{file} by the stock loader"] = velocity(patched, inputs, **more)
    real, fake = run_node(
        nodes.RealFakeLora, model=bases["ours"], lora_name=job["fake"], weight_real=0.25, weight_fake=1.0
    )
    out |= {"real": velocity(real, inputs, **more), "fake": velocity(fake, inputs, **more)}
    return out | {"base afterwards": velocity(bases["ours"], inputs, **more)}


def job_packed(job: dict) -> dict[str, Tensor]:
    """Apply a LoRA to a MODEL from a GGUF pack with every LoRA node, and to the plain MODEL."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
    low_rank, unmerged = (importlib.import_module(f"pack.nodes.{name}") for name in ("low_rank", "unmerged_lora"))
    inputs, lora = load_file(job["inputs"]), Path(job["lora"]).name
    state = {key: value for key, value in load_file(job["model"]).items() if not key.startswith("null_prompt.")}
    plain, packed = comfy.sd.load_diffusion_model(job["model"]), packed_model(state)
    fixed = [unmerged.weights_are_fixed(model) for model in (plain, packed)]
    fitted = low_rank.fit_lora(packed, job["lora"])
    out = {
        "fixed": torch.tensor(fixed),
        "matched": torch.tensor([fitted.matched, len(fitted.misses)]),
        "strange names": torch.tensor(sum("temp" in key for key in packed.model_state_dict())),
    }
    for name, model in (("plain", plain), ("packed", packed)):
        (patched,) = run_node(nodes.LoadLora, model=model, lora_name=lora, strength=1.0)
        out |= {f"{name} without": velocity(model, inputs), f"{name} with": velocity(patched, inputs)}
    weights = {"weight_real": 0.25, "weight_fake": 1.0}
    real, fake = run_node(nodes.RealFakeLora, model=packed, lora_name=lora, **weights)
    out |= {"packed real": velocity(real, inputs), "packed fake": velocity(fake, inputs)}
    values = {"pooled_output": inputs["pooled"], "concat_latent_image": inputs["image"], "concat_mask": inputs["mask"]}
    conditioning = [[inputs["text"], values]]
    (tied,) = run_node(nodes.LoraSteps, model=packed, conditioning=conditioning, lora_name=lora, strengths="1", steps=0)
    out |= {"steps without": sampled(packed, conditioning, inputs), "steps with": sampled(packed, tied, inputs)}
    (patched,) = run_node(nodes.LoadLora, model=packed, lora_name=lora, strength=1.0)
    return out | {"steps merged": sampled(patched, conditioning, inputs)}


def sampled(model: ModelPatcher, conditioning: list, inputs: dict[str, Tensor], schedule: str = "sigmas") -> Tensor:
    """Sample with stock nodes and ComfyUI's own Euler, without guidance."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    noise, euler = inputs["x"], comfy.samplers.ksampler("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, inputs[schedule], disable_pbar=True)


def job_lora_steps(job: dict) -> dict[str, Tensor]:
    """Attach a LoRA to the conditioning, then sample with stock nodes and ComfyUI's own Euler."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
    model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    inputs = load_file(job["inputs"])
    values = {"pooled_output": inputs["pooled"], "concat_latent_image": inputs["image"], "concat_mask": inputs["mask"]}
    plain = [[inputs["text"], values]]
    lora = Path(job["lora"]).name

    out = {"without": sampled(model, plain, inputs)}
    (patched,) = run_node(nodes.LoadLora, model=model, lora_name=lora, strength=1.0)
    out["with"] = sampled(patched, plain, inputs)
    for strengths in job["strengths"]:
        (tied,) = run_node(
            nodes.LoraSteps, model=model, conditioning=plain, lora_name=lora, strengths=strengths, steps=0
        )
        out[strengths] = sampled(model, tied, inputs)
        out[f"{strengths} again"] = sampled(model, tied, inputs)
        for schedule in ("other sigmas", "last sigmas", "middle sigmas"):
            out[f"{strengths} {schedule}"] = sampled(model, tied, inputs, schedule)
    out["without, afterwards"] = sampled(model, plain, inputs)
    return out

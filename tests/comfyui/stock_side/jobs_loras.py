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


class Packed(Tensor):
    """A weight as in packs for GGUF files: packed bytes that report the shape of the unpacked weight."""

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "unpacked", self.size())


def job_packed(job: dict) -> dict[str, Tensor]:
    """Match a LoRA with a MODEL whose weights are packed, so its state dict shows packed bytes."""
    load_pack()
    low_rank, unmerged = (importlib.import_module(f"pack.nodes.{name}") for name in ("low_rank", "unmerged_lora"))
    model = comfy.sd.load_diffusion_model(job["model"])
    before = unmerged.weights_are_fixed(model)
    for block in model.model.diffusion_model.double_blocks:
        layer = block.img_attn.qkv
        unpacked = layer.weight.shape
        packed = torch.zeros(unpacked[0], 18, dtype=torch.uint8).as_subclass(Packed)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
        layer.weight.unpacked = unpacked
    lora = low_rank.fit_lora(model, job["lora"])
    state = model.model_state_dict()["diffusion_model.double_blocks.0.img_attn.qkv.weight"]
    return {
        "fixed": torch.tensor([before, unmerged.weights_are_fixed(model)]),
        "matched": torch.tensor([lora.matched, len(lora.misses)]),
        "columns": torch.tensor(state.size(1)),
    }


def job_lora_steps(job: dict) -> dict[str, Tensor]:
    """Attach a LoRA to the conditioning, then sample with stock nodes and ComfyUI's own Euler."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
    model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    inputs = load_file(job["inputs"])
    values = {"pooled_output": inputs["pooled"], "concat_latent_image": inputs["image"], "concat_mask": inputs["mask"]}
    plain = [[inputs["text"], values]]
    lora = Path(job["lora"]).name

    def sample(model: ModelPatcher, conditioning: list, schedule: str = "sigmas") -> Tensor:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning, conditioning)
        guider.set_cfg(1.0)
        noise, euler = inputs["x"], comfy.samplers.ksampler("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, inputs[schedule], disable_pbar=True)

    out = {"without": sample(model, plain)}
    (patched,) = run_node(nodes.LoadLora, model=model, lora_name=lora, strength=1.0)
    out["with"] = sample(patched, plain)
    for strengths in job["strengths"]:
        (tied,) = run_node(
            nodes.LoraSteps, model=model, conditioning=plain, lora_name=lora, strengths=strengths, steps=0
        )
        out[strengths] = sample(model, tied)
        out[f"{strengths} again"] = sample(model, tied)
        for schedule in ("other sigmas", "last sigmas", "middle sigmas"):
            out[f"{strengths} {schedule}"] = sample(model, tied, schedule)
    out["without, afterwards"] = sample(model, plain)
    return out

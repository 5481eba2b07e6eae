"""Jobs about ComfyUI's nodes that patch a MODEL: on the pack's MODEL, and on one from the stock loader."""

import importlib
from collections.abc import Callable
from pathlib import Path

import comfy.hooks
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from jobs_common import letters, load_pack, run_node, stock_vae, told
from safetensors.torch import load_file
from torch import Tensor

_WINDOWS = {"context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False}
_WINDOWS |= {"fuse_method": "pyramid"}
_LAYERS = {"double_layers": "0", "single_layers": "1", "start_percent": 0.0, "end_percent": 1.0}
_CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
_ROPE = {"scale_x": 2.0, "shift_x": 1.0, "scale_y": 1.0, "shift_y": 0.0, "scale_t": 1.5, "shift_t": 2.0}
# Name in the test -> module in comfy_extras, class, inputs.
_NODES: dict[str, tuple[str, str, dict[str, object]]] = {
    "APG": ("nodes_apg", "APG", {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}),
    "CFGNorm": ("nodes_cfg", "CFGNorm", {"strength": 0.5}),
    "CFGZeroStar": ("nodes_cfg", "CFGZeroStar", {}),
    "ContextWindowsManual": (
        *("nodes_context_windows", "ContextWindowsManualNode"),
        _WINDOWS | {"context_length": 3, "dim": 2, "freenoise": False, "cond_retain_index_list": "0"},
    ),
    "ContextWindowsManual keeping the latent": (
        *("nodes_context_windows", "ContextWindowsManualNode"),
        _WINDOWS | {"context_length": 3, "dim": 2, "freenoise": False, "latent_retain_index_list": "0"},
    ),
    "WanContextWindowsManual": (
        *("nodes_context_windows", "WanContextWindowsManualNode"),
        _WINDOWS | {"context_length": 9, "context_overlap": 4, "freenoise": True, "retain_first_frame": True},
    ),
    "EasyCache": ("nodes_easycache", "EasyCacheNode", _CACHE),
    "LazyCache": ("nodes_easycache", "LazyCacheNode", _CACHE),
    "EpsilonScaling": ("nodes_eps", "EpsilonScaling", {"scaling_factor": 1.1}),
    "TemporalScoreRescaling": ("nodes_eps", "TemporalScoreRescaling", {"tsr_k": 0.9, "tsr_sigma": 1.0}),
    "FreSca": ("nodes_fresca", "FreSca", {"scale_low": 0.8, "scale_high": 1.5, "freq_cutoff": 2}),
    "Mahiro": ("nodes_mahiro", "Mahiro", {}),
    "ModelComputeDtype": ("nodes_model_advanced", "ModelComputeDtype", {"dtype": "bf16"}),
    "NAGuidance": ("nodes_nag", "NAGuidance", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}),
    "ScaleROPE": ("nodes_rope", "ScaleROPE", _ROPE),
    "SelectModelDevice": ("nodes_multigpu", "SelectModelDeviceNode", {"device": "cpu"}),
    "SkipLayerGuidanceDiT": ("nodes_slg", "SkipLayerGuidanceDiT", _LAYERS | {"scale": 3.0}),
    "SkipLayerGuidanceDiTSimple": ("nodes_slg", "SkipLayerGuidanceDiTSimple", _LAYERS),
    "TCFG": ("nodes_tcfg", "TCFG", {}),
    # Without `inductor`, which compiles for minutes on a CPU. The wrapper around the network is the same.
    "TorchCompileModel": ("nodes_torch_compile", "TorchCompileModel", {"backend": "eager"}),
    "wanBlockSwap": ("nodes_nop", "wanBlockSwap", {}),
}


def _patch(name: str) -> Callable[[ModelPatcher], ModelPatcher] | None:
    """Return the function of a stock node; None if this ComfyUI has no such node."""
    file, node_name, inputs = _NODES[name]
    try:
        node = getattr(importlib.import_module(f"comfy_extras.{file}"), node_name)
    except (ImportError, AttributeError):
        return None
    if hasattr(node, "patch"):
        return lambda model: node().patch(model, **inputs)[0]
    return lambda model: run_node(node, model=model, **inputs)[0]


def _correct_token_replacement(network: torch.nn.Module) -> None:
    """Let ComfyUI's network compute token replacement as the release does, independently of the pack's patches.

    Its modules are changed, not the MODEL, so no node can replace the correction.
    """

    def moved(forward: Callable) -> Callable:
        def call(*args: object, modulation_dims: list, transformer_options: dict, **more: object) -> Tensor:
            text, frame = transformer_options["img_slice"][0], modulation_dims[0][1]
            dims = [(0, text, 1), (text, text + frame, 0), (text + frame, None, 1)]
            return forward(*args, modulation_dims=dims, transformer_options=transformer_options, **more)

        return call

    for block in network.single_blocks:
        block.forward = moved(block.forward)
    embed = network.guidance_in.forward
    network.guidance_in.forward = lambda features: torch.stack([0 * embed(features), embed(features)], dim=1)


def job_patches(job: dict) -> dict[str, Tensor]:
    """Sample with every node on both MODELs: as they are, with a LoRA on top, and with one in the conditioning."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
    lora_name, lora = Path(job["lora"]).name, comfy.utils.load_torch_file(job["lora"], safe_load=True)
    ours = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    stock = comfy.sd.load_diffusion_model(job["model"])
    if job["mode"] == "token_replace":
        _correct_token_replacement(stock.model.diffusion_model)
    (stock,) = ModelSamplingSD3().patch(stock, job["shift"])
    image = load_file(job["inputs"])["image"]
    sizes = {"width": 0, "height": 0, "length": 0, "batch_size": 1}
    positive, latent = run_node(nodes.PortraitToVideo, model=ours, vae=stock_vae(job), start_image=image, **sizes)
    negative = [[-states, values] for states, values in positive]
    samples, mask = latent["samples"], latent.get("noise_mask")
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(job["seed"]))
    (sigmas,) = run_node(nodes.FewStepSigmas, model=ours, steps=0, shift=0.0)

    def sampled(model: ModelPatcher, positive: list, negative: list) -> Tensor:
        guider = CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(2.5)
        euler = comfy.samplers.sampler_object("euler")
        # Some nodes change the noise in place.
        given = {"denoise_mask": mask, "disable_pbar": True, "seed": job["seed"]}
        return guider.sample(noise.clone(), samples, euler, sigmas, **given)

    merged, _ = comfy.sd.load_lora_for_models(stock, None, lora, 1.0, 0.0)
    _, fake = run_node(nodes.RealFakeLora, model=ours, lora_name=lora_name, weight_real=0.25, weight_fake=1.0)
    texts = (positive, negative)
    # Two hooks, as from two nodes, because *LoRA strength per step* takes one conditioning.
    hooked = [
        comfy.hooks.set_hooks_for_conditioning(text, comfy.hooks.create_hook_lora(lora, 0.5, 0.0)) for text in texts
    ]
    steps = {"model": ours, "lora_name": lora_name, "strengths": "0.5", "steps": 0}
    tied = [run_node(nodes.LoraSteps, conditioning=text, **steps)[0] for text in texts]
    routes = {
        "plain": ((stock, *texts), (ours, *texts)),
        "fake LoRA": ((merged, *texts), (fake, *texts)),
        "LoRA per step": ((stock, *hooked), (ours, *tied)),
    }
    out = {}
    for route, both in routes.items():
        for side, (model, *conditioning) in zip(("stock", "ours"), both, strict=True):
            out[f"none/{route}/{side}"] = sampled(model, *conditioning)
            for name in job["calling"] + (job["guiding"] if route == "plain" else []):
                if (patch := _patch(name)) is not None:
                    out[f"{name}/{route}/{side}"] = sampled(patch(model), *conditioning)
    given = {"conditioning": positive, "latent": latent, "seed": 3, "steps": 0, "shift": 0.0, "sampler": "recipe"}
    for name in job["few_step"]:
        if (patch := _patch(name)) is not None:
            for side, model in (("stock", stock), ("ours", ours)):
                (result, record), said = told(nodes.FewStepSampler, model=patch(model), **given)
                out[f"{name}/few steps/{side}"] = result["samples"]
            out[f"{name}/said"], out[f"{name}/record"] = letters(said), letters(record)
    out["none/few steps/ours"] = run_node(nodes.FewStepSampler, model=ours, **given)[0]["samples"]
    return out | {f"none/{route}/afterwards": sampled(*ours) for route, (_, ours) in routes.items()}

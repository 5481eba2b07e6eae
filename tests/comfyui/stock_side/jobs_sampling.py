"""Jobs about sampling: the full node, its parts, and previews."""

import importlib
from pathlib import Path
from unittest.mock import patch

import comfy.hooks
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER, CFGGuider
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from jobs_common import letters, load_pack, run_node, stock_vae, told
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def job_sample(job: dict) -> dict[str, Tensor]:
    """Run the pack's full chain (load, portrait to video, sampler), and compute the stock schedule of the MODEL."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    (model,) = run_node(
        nodes.LoadModel, unet_name=Path(job["model"]).name, weight_dtype="default", start_image_mode="from the file"
    )
    state, metadata = comfy.utils.load_torch_file(job["vae"], return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    image = load_file(job["inputs"])["image"]
    settings = {"model": model, "vae": vae, "start_image": image, "width": 0, "height": 0, "length": 0}
    if "guidance" in job:
        # Text with a guidance scale, as from ComfyUI's guidance node.
        prompt = model.get_attachment("magicdistill").null_prompt
        values = {"pooled_output": prompt.pooled, "guidance": job["guidance"]}
        settings["positive"] = [[prompt.text_states, values]]
    conditioning, latent = run_node(nodes.PortraitToVideo, **settings, batch_size=2)
    values = conditioning[0][1]
    image_latent = values["concat_latent_image"] if "concat_latent_image" in values else latent["samples"][:1, :, :1]
    out = {"image_latent": image_latent.clone()}
    stock = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    out["stock_sigmas"] = stock
    # A clone, like those from model-patching nodes between the loader and the sampler.
    settings = {"model": model.clone(), "conditioning": conditioning, "latent": latent, "seed": job["seed"], "steps": 0}
    for sampler in ("recipe", "renoise"):
        result, _ = run_node(nodes.FewStepSampler, **settings, shift=0.0, sampler=sampler)
        out[sampler] = result["samples"]
    return out | {"sigmas said": letters(told(nodes.FewStepSigmas, model=model, steps=0, shift=0.0)[1])}


def job_parts(job: dict) -> dict[str, Tensor]:
    """Sample the same run with the sampler node, its parts, ComfyUI's own sampler, compiled, and with hooks."""
    nodes = load_pack()
    model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    vae = stock_vae(job)
    image = load_file(job["inputs"])["image"]
    sizes = {"width": 0, "height": 0, "length": 0, "batch_size": 2}
    conditioning, latent = run_node(nodes.PortraitToVideo, model=model, vae=vae, start_image=image, **sizes)

    def whole(model: ModelPatcher, conditioning: list, **settings: object) -> tuple[Tensor, str, str]:
        given = {"seed": job["seed"], "steps": 0, "shift": 0.0, "sampler": "recipe"} | settings
        given |= {"model": model, "conditioning": conditioning, "latent": latent}
        (samples, record), said = told(nodes.FewStepSampler, **given)
        return samples["samples"], record, said

    def parts(model: ModelPatcher, conditioning: list, guider: CFGGuider, sampler: str | KSAMPLER) -> Tensor:
        (sigmas,) = run_node(nodes.FewStepSigmas, model=model, steps=0, shift=0.0)
        if isinstance(sampler, str):
            (sampler,) = run_node(nodes.FewStepSamplerSelect, model=model, sampler=sampler)
        if isinstance(guider, Guider_Basic):
            guider.set_conds(conditioning)
        else:
            guider.set_conds(conditioning, conditioning)
            guider.set_cfg(1.0)
        given = {"noise": Noise_RandomNoise(job["seed"]), "guider": guider, "sampler": sampler, "sigmas": sigmas}
        return run_node(SamplerCustomAdvanced, **given, latent_image=latent)[0]["samples"]

    out = {}
    for sampler in ("euler", "renoise"):
        out[f"whole {sampler}"] = whole(model, conditioning, sampler=sampler)[0]
        out[f"parts {sampler}"] = parts(model, conditioning, Guider_Basic(model), sampler)
        out[f"cfg {sampler}"] = parts(model, conditioning, CFGGuider(model), sampler)
    stock = comfy.samplers.sampler_object("euler")
    out["stock euler"] = parts(model, conditioning, Guider_Basic(model), stock)
    compiled = model.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=compiled, backend="eager", options={})
    out["compiled"] = whole(compiled, conditioning)[0]
    lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
    merged, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    out["merged"] = whole(merged, conditioning)[0]
    hooks = {"hooks": comfy.hooks.create_hook_lora(lora, 1.0, 0.0)}
    hooked = node_helpers.conditioning_set_values(conditioning, hooks)
    out["hooked"] = whole(model, hooked)[0]
    out["unhooked"] = whole(model, conditioning)[0]
    (moved,) = ModelSamplingSD3().patch(model, 9.0)
    out["moved said"] = letters(whole(moved, conditioning)[2])
    out["moved back said"] = letters(whole(moved, conditioning, shift=9.0)[2])
    out["steps said"] = letters(told(nodes.FewStepSigmas, model=model, steps=2, shift=3.0)[1])
    guided = node_helpers.conditioning_set_values(conditioning, {"guidance": 3.0})
    _, record, said = whole(model, guided)
    out["guided said"], out["record"] = letters(said), letters(record)
    bare = comfy.sd.load_diffusion_model(job["model"])
    out["bare said"] = letters(told(nodes.FewStepSigmas, model=bare, steps=0, shift=0.0)[1])
    (moved,) = ModelSamplingSD3().patch(bare, 9.0)
    out["bare moved said"] = letters(told(nodes.FewStepSigmas, model=moved, steps=0, shift=0.0)[1])
    out["bare record"] = letters(whole(bare, conditioning)[1])
    return out


def job_preview_frames(job: dict) -> dict[str, Tensor]:
    """Return the pictures of a preview from latents in the network's scale, and the video frames for each."""
    load_pack()
    model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    with patch.object(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB):
        frames_of = importlib.import_module("pack.nodes.previews")._frame_maker(model)
    pictures, share = frames_of(load_file(job["inputs"])["latents"])
    return {"pictures": torch.stack([pil_to_tensor(picture) for picture in pictures]), "share": torch.tensor(share)}


def job_previews(job: dict) -> dict[str, Tensor]:
    """Sample with previews; record requests for memory, and what happens if a preview finds no memory."""
    nodes = load_pack()
    model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
    sizes = {"width": 0, "height": 0, "length": 0, "batch_size": 1}
    image = load_file(job["inputs"])["image"]
    conditioning, latent = run_node(nodes.PortraitToVideo, model=model, vae=stock_vae(job), start_image=image, **sizes)
    given = {"conditioning": conditioning, "latent": latent, "seed": 1, "steps": 0, "shift": 0.0, "sampler": "recipe"}
    loaded, decoded = [], []
    load, decode = comfy.model_management.load_models_gpu, comfy.taesd.taehv.TAEHV.decode

    def load_noted(models: list, *args: object, **more: object) -> None:
        loaded.extend(type(patcher.model).__name__ for patcher in models)
        load(models, *args, **more)

    def decode_noted(*args: object) -> Tensor:
        decoded.append("decoded")
        return decode(*args)

    def missing(*_: object) -> Tensor:
        decoded.append("missing")
        raise comfy.model_management.OOM_EXCEPTION("no memory")

    out = {}
    for name, method, decoder in (("off", "none", decode), ("on", "auto", decode_noted), ("missing", "auto", missing)):
        preview = comfy.cli_args.LatentPreviewMethod.from_string(method)
        with (
            patch.object(comfy.model_management, "load_models_gpu", load_noted),
            patch.object(comfy.cli_args.args, "preview_method", preview),
            patch.object(comfy.taesd.taehv.TAEHV, "decode", decoder),
        ):
            out[f"previews {name}"] = run_node(nodes.FewStepSampler, model=model, **given)[0]["samples"]
    return out | {"loaded": letters(" ".join(loaded)), "decoded": letters(" ".join(decoded))}

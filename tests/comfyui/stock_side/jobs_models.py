"""Jobs on whole models: what each loader gives, and that networks of ComfyUI's answer as the trainer's do."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sd
import comfy.utils
import folder_paths
import torch
from jobs_common import letters, load_pack, run_node, told, velocity
from safetensors.torch import load_file
from torch import Tensor


def job_velocity(job: dict) -> dict[str, Tensor]:
    """Stock loader, stock LoRA loader, stock network."""
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"class": torch.tensor([type(model.model).__name__ == "HunyuanVideoI2V"])}
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, job["weight"], 0.0)
    return out | {"velocity": velocity(model, load_file(job["inputs"]))}


def job_loaders(job: dict) -> dict[str, Tensor]:
    """A file by the stock loader and by the pack's, and what the pack's says of it."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    inputs, more = load_file(job["inputs"]), {"guidance": job["guidance"]}
    stock = comfy.sd.load_diffusion_model(job["model"])
    given = {"unet_name": Path(job["model"]).name, "weight_dtype": "default", "start_image_mode": "from the file"}
    (ours,), said = told(nodes.LoadModel, **given)
    return {"stock": velocity(stock, inputs, **more), "ours": velocity(ours, inputs, **more), "said": letters(said)}


def job_token_replace(job: dict) -> dict[str, Tensor]:
    """A token-replace model by the stock loader and by the pack's, at every batch size that the stock network takes."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    inputs = load_file(job["inputs"])
    # In the network's scale, as sampling hands the kept frame to it.
    inputs["x"][:, :, :1] = inputs["image"] * comfy.latent_formats.HunyuanVideo().scale_factor
    inputs.pop("mask"), inputs.pop("image")
    inputs |= {"image": None, "mask": None}
    more = {"guiding_frame_index": 0, "guidance": job["guidance"]}
    stock = comfy.sd.load_diffusion_model(job["model"])
    (ours,) = run_node(
        nodes.LoadModel, unet_name=Path(job["model"]).name, weight_dtype="default", start_image_mode="from the file"
    )
    out = {"stock": velocity(stock, inputs, **more), "ours": velocity(ours, inputs, **more)}
    # As compiling and hooks do under dynamic VRAM: a clone with a network of its own, while the first is elsewhere.
    twin = ours.clone(force_deepcopy=True)
    assert twin.model is not ours.model
    for parameter in ours.model.diffusion_model.parameters():
        parameter.data.fill_(torch.nan)
    return out | {"twin": velocity(twin, inputs, **more)}


def job_wan(job: dict) -> dict[str, Tensor]:
    """A Wan 2.1 image-to-video model by the stock loaders; the features as CLIP Vision Encode hands them on."""
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"class": torch.tensor([type(model.model).__name__ == "WAN21" and model.model.image_to_video])}
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    inputs = load_file(job["inputs"])
    seen = SimpleNamespace(penultimate_hidden_states=inputs["features"])
    return out | {"velocity": velocity(model, inputs, clip_vision_output=seen)}


def job_quantised(job: dict) -> dict[str, Tensor]:
    """A file by the stock loader, how much memory it takes, with a LoRA on top, and by the pack's loader."""
    inputs = load_file(job["inputs"])
    seen = SimpleNamespace(penultimate_hidden_states=inputs.get("features"))
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"stock": velocity(model, inputs, clip_vision_output=seen)}
    held = model.model.diffusion_model.state_dict()
    int8 = {key for key, value in held.items() if value.dtype == torch.int8}
    sizes = {key: value.nbytes for key, value in held.items() if not key.endswith(".comfy_quant")}
    out["int8"] = torch.tensor(sum(size for key, size in sizes.items() if key.removesuffix("_scale") in int8))
    out["bytes"] = torch.tensor(sum(sizes.values()))
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        out["lora"] = velocity(patched, inputs)
        load_pack()
        ours = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
        out["ours"] = velocity(ours, inputs)
    return out


def job_real_fake(job: dict) -> dict[str, Tensor]:
    """The pack's loader and its real/fake node, by files in ComfyUI's model folders."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
    (model,) = run_node(
        nodes.LoadModel, unet_name=Path(job["model"]).name, weight_dtype="default", start_image_mode="from the file"
    )
    real, fake = run_node(
        nodes.RealFakeLora, model=model, lora_name=Path(job["lora"]).name, weight_real=0.25, weight_fake=1.0
    )
    inputs = load_file(job["inputs"])
    out = {"real": velocity(real, inputs), "fake": velocity(fake, inputs)}
    # Unpatched again, the base is untouched by its two clones.
    return out | {"base": velocity(model, inputs)}

"""Jobs about full models: the results of each loader, and the velocities of ComfyUI's networks."""

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
    """Compute velocities with the stock loader, the stock LoRA loader and the stock network."""
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"class": torch.tensor([type(model.model).__name__ == "HunyuanVideoI2V"])}
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, job["weight"], 0.0)
    return out | {"velocity": velocity(model, load_file(job["inputs"]))}


def job_loaders(job: dict) -> dict[str, Tensor]:
    """Load a file with the stock loader and with the pack's; return both and the text of the pack's node."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    inputs, more = load_file(job["inputs"]), {"guidance": job["guidance"]}
    stock = comfy.sd.load_diffusion_model(job["model"])
    given = {"unet_name": Path(job["model"]).name, "weight_dtype": "default", "start_image_mode": "from the file"}
    (ours,), said = told(nodes.LoadModel, **given)
    return {"stock": velocity(stock, inputs, **more), "ours": velocity(ours, inputs, **more), "said": letters(said)}


def job_token_replace(job: dict) -> dict[str, Tensor]:
    """Load a token-replace model with both loaders, for every batch size that the stock network accepts."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    inputs = load_file(job["inputs"])
    # In the network's scale, in which sampling passes the kept frame.
    inputs["x"][:, :, :1] = inputs["image"] * comfy.latent_formats.HunyuanVideo().scale_factor
    inputs.pop("mask"), inputs.pop("image")
    inputs |= {"image": None, "mask": None}
    more = {"guiding_frame_index": 0, "guidance": job["guidance"]}
    stock = comfy.sd.load_diffusion_model(job["model"])
    (ours,) = run_node(
        nodes.LoadModel, unet_name=Path(job["model"]).name, weight_dtype="default", start_image_mode="from the file"
    )
    out = {"stock": velocity(stock, inputs, **more), "ours": velocity(ours, inputs, **more)}
    # As with compiling and hooks under dynamic VRAM: a clone with its own network, after the first lost its weights.
    twin = ours.clone(force_deepcopy=True)
    assert twin.model is not ours.model
    for parameter in ours.model.diffusion_model.parameters():
        parameter.data.fill_(torch.nan)
    return out | {"twin": velocity(twin, inputs, **more)}


def job_wan(job: dict) -> dict[str, Tensor]:
    """Load a Wan 2.1 image-to-video model with the stock loader; features come in CLIP Vision Encode's form."""
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"class": torch.tensor([type(model.model).__name__ == "WAN21" and model.model.image_to_video])}
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    inputs = load_file(job["inputs"])
    seen = SimpleNamespace(penultimate_hidden_states=inputs["features"])
    return out | {"velocity": velocity(model, inputs, clip_vision_output=seen)}


def job_quantised(job: dict) -> dict[str, Tensor]:
    """Load a file with the stock loader (memory, LoRA on top) and with the pack's loader."""
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


def job_ours(job: dict) -> dict[str, Tensor]:
    """Load a file with the pack's loader; return its velocity and the text of the node."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    given = {"unet_name": Path(job["model"]).name, "weight_dtype": "default", "start_image_mode": "from the file"}
    outputs, said = told(nodes.LoadModel, **given)
    computed = {"velocity": velocity(outputs[0], load_file(job["inputs"]))} if outputs else {}
    return computed | {"said": letters(said)}


def job_real_fake(job: dict) -> dict[str, Tensor]:
    """Run the pack's loader and its real/fake node on files in ComfyUI's model folders."""
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
    # After unpatching, the two clones have not changed the base.
    return out | {"base": velocity(model, inputs)}

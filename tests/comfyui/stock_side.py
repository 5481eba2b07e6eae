"""The other side of the comparison: run jobs with a real ComfyUI, in a process of its own.

Usage: stock_side.py COMFYUI JOBS.json. Each job names what to run and where to write the tensors it gives.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

PACK = Path(__file__).resolve().parents[2]
COMFYUI, JOBS = sys.argv[1:3]
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402


def load_pack() -> ModuleType:
    """Import the pack as ComfyUI does: by path, under a name that is no package on sys.path."""
    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes")


def run_node(node: type[io.ComfyNode], **inputs: object) -> tuple:
    """A node's outputs, run through ComfyUI's own wrapping."""
    return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result


def velocity(model: ModelPatcher, inputs: dict[str, Tensor], **more: object) -> Tensor:
    """The velocity of ComfyUI's network, its conditioning made by ComfyUI's own `extra_conds`."""
    comfy.model_management.load_models_gpu([model])
    x, sigma = inputs["x"], inputs["sigma"]
    conds = model.model.extra_conds(
        noise=x,
        device=x.device,
        cross_attn=inputs["text"],
        pooled_output=inputs.get("pooled"),
        concat_latent_image=inputs["image"],
        concat_mask=inputs["mask"],
        **more,
    )
    given = {key: cond.process_cond(batch_size=x.shape[0], area=None).cond for key, cond in conds.items()}
    with torch.inference_mode():
        options = model.model_options["transformer_options"]
        denoised = model.model.apply_model(x, sigma, transformer_options=options, **given)
    return (x - denoised) / sigma.reshape(-1, 1, 1, 1, 1)


def job_velocity(job: dict) -> dict[str, Tensor]:
    """Stock loader, stock LoRA loader, stock network."""
    model = comfy.sd.load_diffusion_model(job["model"])
    out = {"class": torch.tensor([type(model.model).__name__ == "HunyuanVideoI2V"])}
    if "lora" in job:
        lora = comfy.utils.load_torch_file(job["lora"], safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, job["weight"], 0.0)
    return out | {"velocity": velocity(model, load_file(job["inputs"]))}


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
    (ours,) = run_node(nodes.LoadModel, unet_name=Path(job["model"]).name, lora_name="none", weight_dtype="default")
    return {"stock": velocity(stock, inputs, **more), "ours": velocity(ours, inputs, **more)}


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
    (model,) = run_node(nodes.LoadModel, unet_name=Path(job["model"]).name, lora_name="none", weight_dtype="default")
    real, fake = run_node(
        nodes.RealFakeLora, model=model, lora_name=Path(job["lora"]).name, weight_real=0.25, weight_fake=1.0
    )
    inputs = load_file(job["inputs"])
    out = {"real": velocity(real, inputs), "fake": velocity(fake, inputs)}
    # Unpatched again, the base is untouched by its two clones.
    return out | {"base": velocity(model, inputs)}


def job_sample(job: dict) -> dict[str, Tensor]:
    """The pack's whole chain: load, portrait to video, sampler; and what the stock schedule makes of the MODEL."""
    nodes = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(Path(job["model"]).parent))
    (model,) = run_node(nodes.LoadModel, unet_name=Path(job["model"]).name, lora_name="none", weight_dtype="default")
    state, metadata = comfy.utils.load_torch_file(job["vae"], return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    image = load_file(job["inputs"])["image"]
    settings = {"model": model, "vae": vae, "start_image": image, "width": 0, "height": 0, "length": 0}
    if "guidance" in job:
        # Text with a scale, as ComfyUI's guidance node gives it.
        prompt = model.get_attachment("magicdistill").null_prompt
        values = {"pooled_output": prompt.pooled, "guidance": job["guidance"]}
        settings["positive"] = [[prompt.text_states, values]]
    conditioning, latent = run_node(nodes.PortraitToVideo, **settings, batch_size=2)
    values = conditioning[0][1]
    image_latent = values["concat_latent_image"] if "concat_latent_image" in values else latent["samples"][:1, :, :1]
    out = {"image_latent": image_latent.clone()}
    stock = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    out["stock_sigmas"] = stock
    # A clone, as every model-patching node between the loader and the sampler makes one.
    settings = {"model": model.clone(), "conditioning": conditioning, "latent": latent, "seed": job["seed"], "steps": 0}
    for sampler in ("recipe", "renoise"):
        result, _ = run_node(nodes.FewStepSampler, **settings, shift=0.0, sampler=sampler)
        out[sampler] = result["samples"]
    return out


def main() -> None:
    for job in json.loads(Path(JOBS).read_text()):
        tensors = globals()[f"job_{job['run']}"](job)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, job["out"])


if __name__ == "__main__":
    main()

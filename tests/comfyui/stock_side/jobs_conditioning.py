"""Jobs about conditioning: start image, text, and both."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.clip_model import clip_preprocess
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_hunyuan import TextEncodeHunyuanVideo_ImageToVideo
from comfy_extras.nodes_wan import WanImageToVideo
from jobs_common import letters, load_pack, run_node, stock_vae, told
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast


def job_portrait(job: dict) -> dict[str, Tensor]:
    """Run Portrait to video with a MODEL from the stock or the pack's loader, and ComfyUI's own node for Wan."""
    nodes = load_pack()
    load = comfy.sd.load_diffusion_model
    if job.get("loader") == "pack":
        pack_load = importlib.import_module("pack.nodes.load_model").load_model

        def load(path: str) -> ModelPatcher:
            return pack_load(path, {})

    given = load_file(job["inputs"])
    settings = {"width": 0, "height": 0, "length": 0, "batch_size": 1} | job["settings"]
    if "text" in given:
        mark = importlib.import_module("pack.nodes.prompt_marks").marked(job["mark"]) if "mark" in job else {}
        settings["positive"] = [[given["text"], {"pooled_output": given["pooled"]} | mark]]
    if "features" in given:
        settings["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=given["features"])
    vae = stock_vae(job)
    inputs = {"model": load(job["model"]), "vae": vae, "start_image": given["image"]} | settings
    result, said = told(nodes.PortraitToVideo, **inputs)
    out = {"said": letters(said)}
    if not result:
        return out
    ((text, values),), latent = result
    out |= {"text": text} | {f"latent.{key}": value for key, value in latent.items()}
    out |= {key: value for key, value in values.items() if isinstance(value, Tensor)}
    out |= {key: torch.tensor(values[key]) for key in ("guidance", "guiding_frame_index") if key in values}
    if "clip_vision_output" in values:
        out["features"] = values["clip_vision_output"].penultimate_hidden_states
    if job.get("native"):
        size = {key: settings[key] for key in ("width", "height", "length", "batch_size")}
        positive, _, empty = run_node(
            WanImageToVideo,
            positive=settings["positive"],
            negative=settings["positive"],
            vae=vae,
            clip_vision_output=settings["clip_vision_output"],
            start_image=given["image"],
            **size,
        )
        native = positive[0][1]
        out |= {f"native.{key}": native[key] for key in ("concat_latent_image", "concat_mask")}
        out["native.samples"] = empty["samples"]
    return out


def job_model_caption(job: dict) -> dict[str, Tensor]:
    """Run Model caption with a MODEL from the pack's loaders or from the stock loader."""
    nodes = load_pack()
    try:
        if job.get("loader") == "stock":
            model = comfy.sd.load_diffusion_model(job["model"])
        else:
            model = importlib.import_module("pack.nodes.load_model").load_model(job["model"], {})
        if "lora" in job:
            folder_paths.add_model_folder_path("loras", str(Path(job["lora"]).parent))
            (model,) = run_node(nodes.LoadLora, model=model, lora_name=Path(job["lora"]).name, strength=1.0)
    except ValueError as error:
        return {"said": letters(str(error))}
    result, said = told(nodes.ModelCaption, model=model, caption=job["caption"])
    out = {"said": letters(said)}
    if result:
        ((text, values),) = result[0]
        out |= {"text": text} | ({"pooled": values["pooled_output"]} if "pooled_output" in values else {})
    return out


def job_clip_pixels(job: dict) -> dict[str, Tensor]:
    """Prepare an image for CLIP's vision models as ComfyUI's CLIP Vision Encode does it."""
    image = load_file(job["inputs"])["image"]
    return {
        name: clip_preprocess(image, size=job["side"], crop=crop) for name, crop in (("center", True), ("none", False))
    }


def job_text_image(job: dict) -> dict[str, Tensor]:
    """Run the pack's encode node with a tiny pair of HunyuanVideo's text encoders, and ComfyUI's own text encode."""
    nodes = load_pack()
    options = {"llama_model_config": job["llama_config"], "model_config": job["clip_config"]}
    options |= {"dtype": torch.float32}
    files = [comfy.utils.load_torch_file(job[name]) for name in ("llama", "clip_l")]
    clip = comfy.sd.load_text_encoder_state_dicts(
        files, clip_type=comfy.sd.CLIPType.HUNYUAN_VIDEO, model_options=options
    )
    # The tokenizer as transformers 4 reads ComfyUI's folder; transformers 5 loses spaces and line breaks.
    clip.tokenizer.llama.tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"])
    projected = load_file(job["inputs"])["projected"]
    seen = SimpleNamespace(mm_projected=projected)
    load = importlib.import_module("pack.nodes.load_model").load_model
    models = {
        name: comfy.sd.load_diffusion_model(path) if name.startswith("stock ") else load(path, {})
        for name, path in job["models"].items()
    }
    out = {}
    for number, prompt in enumerate(job["prompts"]):
        given = {"clip": clip, "clip_vision_output": seen, "prompt": prompt}
        settings = {"": {}} | {f"{title}.": {"template": title} for title in job["templates"]}
        settings |= {f"{name}.": {"model": model} for name, model in models.items()} if number == 1 else {}
        for name, more in settings.items():
            result, said = told(nodes.TextImageEncode, **given, **more)
            out[f"{name}said.{number}"] = letters(said)
            if result:
                (((states, values),),) = result
                out |= {f"{name}states.{number}": states, f"{name}pooled.{number}": values["pooled_output"]}
        text, native = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]
        out |= {f"native.{number}": text, f"native_pooled.{number}": native["pooled_output"]}
        for stride in (2, 4):
            ((((text, _),),),) = (run_node(TextEncodeHunyuanVideo_ImageToVideo, **given, image_interleave=stride),)
            out[f"native i2v.{stride}.{number}"] = text
    blind = SimpleNamespace(mm_projected=None)
    out["blind"] = letters(told(nodes.TextImageEncode, clip=clip, clip_vision_output=blind, prompt="")[1])
    other = SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1))
    clip.tokenizer.llama.tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["lossy_tokenizer"])
    out["lossy"] = letters(told(nodes.TextImageEncode, clip=clip, clip_vision_output=seen, prompt="")[1])
    out["other"] = letters(told(nodes.TextImageEncode, clip=other, clip_vision_output=seen, prompt="")[1])
    return out

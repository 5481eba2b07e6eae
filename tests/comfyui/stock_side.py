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

import comfy.hooks  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import node_helpers  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy.samplers import KSAMPLER, CFGGuider  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402
from comfy_extras.nodes_custom_sampler import (  # noqa: E402
    Guider_Basic,
    Noise_RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_advanced import ModelSamplingSD3  # noqa: E402
from comfy_extras.nodes_wan import WanImageToVideo  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402


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


def job_sample(job: dict) -> dict[str, Tensor]:
    """The pack's whole chain: load, portrait to video, sampler; and what the stock schedule makes of the MODEL."""
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


def job_loras(job: dict) -> dict[str, Tensor]:
    """LoRA files on one base: by the pack's node and, where `stock` says so, by the stock loader; base by either."""
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
    """A weight as packs for GGUF files hold them: bytes, behind the shape of what they stand for."""

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "unpacked", self.size())


def job_packed(job: dict) -> dict[str, Tensor]:
    """How a LoRA matches a MODEL whose weights are packed, of which a state dict shows the bytes."""
    load_pack()
    low_rank, beside = (importlib.import_module(f"pack.nodes.{name}") for name in ("low_rank", "lora_beside"))
    model = comfy.sd.load_diffusion_model(job["model"])
    before = beside.weights_are_fixed(model)
    for block in model.model.diffusion_model.double_blocks:
        layer = block.img_attn.qkv
        unpacked = layer.weight.shape
        packed = torch.zeros(unpacked[0], 18, dtype=torch.uint8).as_subclass(Packed)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
        layer.weight.unpacked = unpacked
    lora = low_rank.fit_lora(model, job["lora"])
    state = model.model_state_dict()["diffusion_model.double_blocks.0.img_attn.qkv.weight"]
    return {
        "fixed": torch.tensor([before, beside.weights_are_fixed(model)]),
        "matched": torch.tensor([lora.matched, len(lora.misses)]),
        "columns": torch.tensor(state.size(1)),
    }


def job_lora_steps(job: dict) -> dict[str, Tensor]:
    """A LoRA by the node that ties it to the conditioning, sampled by stock nodes' parts with ComfyUI's own Euler."""
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


def told(node: type[io.ComfyNode], **inputs: object) -> tuple[tuple, str]:
    """A node's outputs and what it says under itself, or no outputs and the error's message."""
    try:
        output = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
    except ValueError as error:
        return (), str(error)
    return output.result, output.ui.as_dict()["text"][0]


def letters(text: str) -> Tensor:
    """A text as a tensor, so that it fits into the file of answers."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def stock_vae(job: dict) -> comfy.sd.VAE:
    """The VAE of a file; or a tiny one of Wan's or HunyuanVideo's own class, which no file holds."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if job["vae"] == "wan":
            state = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]).state_dict()
            return comfy.sd.VAE(sd={key: torch.randn(value.shape) * 0.1 for key, value in state.items()})
        if job["vae"] == "hunyuan":
            sides = {"ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "conv3d": True}
            sides |= {"in_channels": 3, "out_ch": 3, "resolution": 32, "z_channels": 16, "double_z": True}
            vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(job["scaffold"]))
            vae.first_stage_model = AutoencoderKL(ddconfig=sides, embed_dim=16)
            return vae
    state, metadata = comfy.utils.load_torch_file(job["vae"], return_metadata=True)
    return comfy.sd.VAE(sd=state, metadata=metadata)


def job_portrait(job: dict) -> dict[str, Tensor]:
    """Portrait to video with a MODEL of the stock or of the pack's loader, beside ComfyUI's own node for Wan."""
    nodes = load_pack()
    load = comfy.sd.load_diffusion_model
    if job.get("loader") == "pack":
        pack_load = importlib.import_module("pack.nodes.load_model").load_model

        def load(path: str) -> ModelPatcher:
            return pack_load(path, {})

    given = load_file(job["inputs"])
    settings = {"width": 0, "height": 0, "length": 0, "batch_size": 1} | job["settings"]
    if "text" in given:
        settings["positive"] = [[given["text"], {"pooled_output": given["pooled"]}]]
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


def job_text_image(job: dict) -> dict[str, Tensor]:
    """The pack's encode node with a tiny pair of HunyuanVideo's text encoders, beside ComfyUI's own text encode."""
    nodes = load_pack()
    options = {"llama_model_config": job["llama_config"], "model_config": job["clip_config"]}
    options |= {"dtype": torch.float32}
    files = [comfy.utils.load_torch_file(job[name]) for name in ("llama", "clip_l")]
    clip = comfy.sd.load_text_encoder_state_dicts(
        files, clip_type=comfy.sd.CLIPType.HUNYUAN_VIDEO, model_options=options
    )
    # What transformers 4 makes of ComfyUI's tokenizer folder; transformers 5 loses spaces and line breaks.
    clip.tokenizer.llama.tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"])
    projected = load_file(job["inputs"])["projected"]
    out = {}
    for number, prompt in enumerate(job["prompts"]):
        seen = SimpleNamespace(mm_projected=projected)
        (((states, values),),), said = told(nodes.TextImageEncode, clip=clip, clip_vision_output=seen, prompt=prompt)
        out |= {
            f"states.{number}": states,
            f"pooled.{number}": values["pooled_output"],
            f"said.{number}": letters(said),
        }
        text, native = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]
        out |= {f"native.{number}": text, f"native_pooled.{number}": native["pooled_output"]}
    blind = SimpleNamespace(mm_projected=None)
    out["blind"] = letters(told(nodes.TextImageEncode, clip=clip, clip_vision_output=blind, prompt="")[1])
    other = SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1))
    clip.tokenizer.llama.tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["lossy_tokenizer"])
    out["lossy"] = letters(told(nodes.TextImageEncode, clip=clip, clip_vision_output=seen, prompt="")[1])
    out["other"] = letters(told(nodes.TextImageEncode, clip=other, clip_vision_output=seen, prompt="")[1])
    return out


def job_parts(job: dict) -> dict[str, Tensor]:
    """One run by the sampler node, by its parts, by ComfyUI's own, compiled, and with hooks."""
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


def job_previews(job: dict) -> dict[str, Tensor]:
    """A run with previews: who asks ComfyUI for memory in it, and what comes of it when a preview finds none."""
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

    def lacking(*_: object) -> Tensor:
        decoded.append("lacking")
        raise comfy.model_management.OOM_EXCEPTION("no memory")

    out = {}
    comfy.model_management.load_models_gpu = load_noted
    for name, method, decoder in (("off", "none", decode), ("on", "auto", decode_noted), ("lacking", "auto", lacking)):
        comfy.cli_args.args.preview_method = comfy.cli_args.LatentPreviewMethod.from_string(method)
        comfy.taesd.taehv.TAEHV.decode = decoder
        out[f"previews {name}"] = run_node(nodes.FewStepSampler, model=model, **given)[0]["samples"]
    return out | {"loaded": letters(" ".join(loaded)), "decoded": letters(" ".join(decoded))}


def main() -> None:
    for job in json.loads(Path(JOBS).read_text()):
        tensors = globals()[f"job_{job['run']}"](job)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, job["out"])


if __name__ == "__main__":
    main()

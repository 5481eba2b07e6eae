"""Shared by the jobs: import the pack as ComfyUI does, run its nodes, compute velocities with ComfyUI's networks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

PACK = Path(__file__).resolve().parents[3]


def load_pack() -> ModuleType:
    """Import the pack as ComfyUI does: by path, under a name that is not on sys.path."""
    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes")


def run_node(node: type[io.ComfyNode], **inputs: object) -> tuple:
    """Run a node through ComfyUI's own wrapper and return its outputs."""
    return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result


def told(node: type[io.ComfyNode], **inputs: object) -> tuple[tuple, str]:
    """Run a node; return its outputs and the text under it, or no outputs and the error message."""
    try:
        output = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
    except ValueError as error:
        return (), str(error)
    shown = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    return output.result, shown["text"][0]


def letters(text: str) -> Tensor:
    """Encode a text as a tensor for the file of answers."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def velocity(model: ModelPatcher, inputs: dict[str, Tensor], **more: object) -> Tensor:
    """Return the velocity of ComfyUI's network, with the conditioning from ComfyUI's own `extra_conds`."""
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


def stock_vae(job: dict) -> comfy.sd.VAE:
    """Return the VAE of a file, or a tiny one of Wan's or HunyuanVideo's own class, for which there is no file."""
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

"""Jobs about the number types and shapes that nodes of other packs may send."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import comfy.cli_args
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_compositing import JoinImageWithAlpha
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from jobs_common import letters, load_pack, run_node, told
from torch import Tensor

from nodes import LoadImage


@contextmanager
def half_intermediates() -> Iterator[None]:
    """Act like ComfyUI's option --fp16-intermediates."""
    with patch.object(comfy.cli_args.args, "fp16_intermediates", True):
        yield


def job_inputs(job: dict) -> dict[str, Tensor]:
    """Run Portrait to video and the samplers with IMAGE, LATENT and SIGMAS of many types."""
    nodes = load_pack()
    load = importlib.import_module("pack.nodes.load_model").load_model
    model = load(job["model"], {})
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(job["vae"]))
    folder_paths.set_input_directory(job["folder"])
    image, mask = LoadImage().load_image(job["image"])
    sizes = {"width": 32, "height": 32, "length": 5, "batch_size": 1}

    def portrait(picture: Tensor) -> tuple[tuple, str]:
        return told(nodes.PortraitToVideo, model=model, vae=vae, start_image=picture, **sizes)

    def sampled(latent: dict, conditioning: list) -> Tensor:
        given = {"model": model, "conditioning": conditioning, "latent": latent, "seed": 7}
        return run_node(nodes.FewStepSampler, **given, steps=2, shift=0.0, sampler="renoise")[0]["samples"]

    out = {}
    pictures = {str(dtype): image.to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
    gray = image.mean(-1, keepdim=True)
    (joined,) = run_node(JoinImageWithAlpha, image=image, alpha=mask)
    pictures |= {"uint8": (image * 255).round().to(torch.uint8), "gray": gray, "gray as rgb": gray.expand_as(image)}
    pictures |= {"joined": joined, "no channels": image[..., 0], "two channels": image[..., :2], "none": image[:0]}
    pictures |= {"int64": (image * 255).long(), "bool": image > 0.5, "five axes": image[None], "flat": image[:, :0]}
    pictures |= {"nan": torch.full_like(image, torch.nan), "bytes as floats": image * 255}
    for name, picture in pictures.items():
        result, said = portrait(picture)
        out[f"{name} said"] = letters(said)
        if result:
            out[name] = result[0][0][1]["concat_latent_image"].float()

    (conditioning, latent), _ = portrait(image)
    out["sampled"] = sampled(latent, conditioning)
    for dtype in (torch.float16, torch.float64):
        typed = {"samples": latent["samples"].to(dtype), "noise_mask": torch.ones(1, 1, 2, 4, 4, dtype=dtype)}
        out[f"sampled {dtype}"] = sampled(typed, conditioning)
    with half_intermediates():
        image, _ = LoadImage().load_image(job["image"])
        (conditioning, latent), _ = portrait(image)
        out["half image"], out["half latent"] = image, latent["samples"]
        out["half sampled"] = sampled(latent, conditioning)
        frames = vae.decode(out["half sampled"])
        out["half frames"] = frames.reshape(-1, *frames.shape[-3:])

    (sampler,) = run_node(nodes.FewStepSamplerSelect, model=model, sampler="renoise")
    noise = importlib.import_module("comfy_extras.nodes_custom_sampler").Noise_RandomNoise(7)
    for dtype in (torch.float32, torch.float16, torch.float64):
        guider = CFGGuider.execute(model, conditioning, conditioning, 1.0).result[0]
        (sigmas,) = run_node(nodes.FewStepSigmas, model=model, steps=2, shift=1.0)
        given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas.to(dtype)}
        out[f"sigmas {dtype}"] = run_node(SamplerCustomAdvanced, **given, latent_image=latent)[0]["samples"]
    return out

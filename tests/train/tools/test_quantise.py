"""The error of int8 weights in a trained network is smaller than the error of computing in bf16."""

from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.flow import Velocity, few_step_sigmas
from magicdistill_core.pocket import files
from magicdistill_core.pocket.render import portrait_clip
from magicdistill_core.quantise import quantise_file
from magicdistill_core.taehv import load_taehv
from train.networks.network import load_network, network_velocity


def _prompt(prompt: NullPrompt | None, dtype: torch.dtype) -> NullPrompt:
    assert prompt is not None
    assert prompt.pooled is not None
    return NullPrompt(prompt.text_states.to(dtype), prompt.pooled.to(dtype))


def test_four_steps_of_the_pocket_teacher_in_int8(tmp_path: Path) -> None:
    exact = load_checkpoint(files.TEACHER)
    quantise_file(files.TEACHER, tmp_path / "q.safetensors")
    vae = load_taehv(files.VAE)
    stills = torch.stack([torch.as_tensor(portrait_clip(seed, 1, 96))[0] for seed in (11,)]).float() / 255
    with torch.no_grad():
        latents = vae.encode_image(rearrange(stills, "b h w c -> b c h w"))
    condition = exact.family().condition(StartImage(latents), 5)

    def velocity(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Velocity:
        given = condition.to(dtype) if isinstance(condition, torch.Tensor) else condition
        model = network_velocity(load_network(checkpoint, dtype), given, _prompt(checkpoint.null_prompt, dtype))
        return lambda x, sigma: model(x.to(dtype), sigma).float()

    models = {"exact": velocity(exact), "int8": velocity(load_checkpoint(tmp_path / "q.safetensors"))}
    models["bf16"] = velocity(exact, torch.bfloat16)
    sigmas = few_step_sigmas(4, 5)
    x = torch.randn(1, 16, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    ends = dict.fromkeys(("exact", "int8"), x)
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            at = {name: model(ends["exact"], sigma.expand(1)) for name, model in models.items()}
            apart = {name: float((at[name] - at["exact"]).norm() / at["exact"].norm()) for name in at}
            assert 1e-3 < apart["int8"] < apart["bf16"] < 0.015
            ends = {name: end + (after - sigma) * models[name](end, sigma.expand(1)) for name, end in ends.items()}
        videos = {name: vae.decode(end).clamp(0, 1) for name, end in ends.items()}
    assert -10 * torch.log10((videos["int8"] - videos["exact"]).square().mean()) > 50  # dB

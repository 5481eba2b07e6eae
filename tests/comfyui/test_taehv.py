"""The stock ComfyUI loads our autoencoder's file as a HunyuanVideo VAE and computes the same latents and frames."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.families.hunyuan_video import LATENT_SCALE
from magicdistill_core.taehv import TAEHV, load_taehv

_STOCK = """
import sys
comfyui, vae_file, inputs, outputs = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, comfy.utils, torch
from safetensors.torch import load_file, save_file
vae = comfy.sd.VAE(comfy.utils.load_torch_file(vae_file), dtype=torch.float32)
given = load_file(inputs)
# VAEEncode of one picture and VAEDecode of a LATENT.
image = vae.encode(given["image"])
frames = vae.decode(given["latent"])
save_file({"image": image.contiguous(), "frames": frames.contiguous()}, outputs)
"""


def test_stock_vae_equals_ours(comfyui_dir: Path, taehv_file: Path, tmp_path: Path) -> None:
    half = tmp_path / "vae.safetensors"
    save_file({key: value.half() for key, value in load_file(taehv_file).items()}, half)
    ours: TAEHV = load_taehv(half)
    generator = torch.Generator().manual_seed(2)
    picture = torch.rand(1, 3, 32, 48, generator=generator)
    latent = torch.randn(1, 16, 3, 4, 6, generator=generator)
    image = picture.movedim(1, -1).contiguous()
    save_file({"image": image, "latent": latent / LATENT_SCALE}, tmp_path / "in.safetensors")
    paths = [str(comfyui_dir), str(half), str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")]
    done = subprocess.run([sys.executable, "-c", _STOCK, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, json.dumps(done.stderr[-2000:])
    stock = load_file(tmp_path / "out.safetensors")
    with torch.no_grad():
        encoded, decoded = ours.encode_image(picture), ours.decode_unclamped(latent)
    torch.testing.assert_close(stock["image"] * LATENT_SCALE, encoded, atol=1e-4, rtol=1e-3)
    frames = stock["frames"].reshape(-1, *stock["frames"].shape[-3:])
    torch.testing.assert_close(frames, decoded[0].movedim(1, -1), atol=1e-3, rtol=1e-3)

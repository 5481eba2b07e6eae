"""Paths of the shipped pocket weights.

There is one folder per kind of weights, because each ComfyUI loader lists all files of its folder.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DIFFUSION_MODELS = WEIGHTS / "diffusion_models"
VAES = WEIGHTS / "vae"
LORAS = WEIGHTS / "loras"

TEACHER = DIFFUSION_MODELS / "magicdistill_pocket_teacher.safetensors"
GENERATOR = DIFFUSION_MODELS / "magicdistill_pocket_generator.safetensors"
VAE = VAES / "magicdistill_pocket_vae.safetensors"
FAKE_LORA = LORAS / "magicdistill_pocket_fake_lora.safetensors"

# Width and height of the training videos, in pixels.
SIZE = 96

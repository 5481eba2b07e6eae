"""Where the shipped pocket weights lie: one folder a kind, so that each model loader lists only what it can load."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DIFFUSION_MODELS = WEIGHTS / "diffusion_models"
VAES = WEIGHTS / "vae"
LORAS = WEIGHTS / "loras"

TEACHER = DIFFUSION_MODELS / "magicdistill_pocket_teacher.safetensors"
GENERATOR = DIFFUSION_MODELS / "magicdistill_pocket_generator.safetensors"
VAE = VAES / "magicdistill_pocket_vae.safetensors"
FAKE_LORA = LORAS / "magicdistill_pocket_fake_lora.safetensors"

# Width and height of the videos that they were trained on, in pixels.
SIZE = 96

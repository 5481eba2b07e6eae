"""Paths of the shipped pocket weights.

There is one folder per kind of weights, because each ComfyUI loader lists all files of its folder.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DIFFUSION_MODELS = WEIGHTS / "diffusion_models"
VAES = WEIGHTS / "vae"
LORAS = WEIGHTS / "loras"
READERS = WEIGHTS / "reader"

TEACHER = DIFFUSION_MODELS / "magicdistill_pocket_teacher.safetensors"
VAE = VAES / "magicdistill_pocket_vae.safetensors"
# All LoRAs belong to the teacher: the generators with 4 steps and with 1 step, and the fake branch of the former.
FOUR_STEP_LORA = LORAS / "magicdistill_pocket_4step_lora.safetensors"
ONE_STEP_LORA = LORAS / "magicdistill_pocket_1step_lora.safetensors"
FAKE_LORA = LORAS / "magicdistill_pocket_fake_lora.safetensors"
# These carry the captions: the captioned teacher, and its 4-step generator.
CAPTIONED_LORA = LORAS / "magicdistill_pocket_captioned_lora.safetensors"
CAPTIONED_4STEP_LORA = LORAS / "magicdistill_pocket_captioned_4step_lora.safetensors"
# No ComfyUI loader reads it: the trainer measures samples with it.
READER = READERS / "magicdistill_pocket_reader.safetensors"

# Width and height of the training videos, in pixels.
SIZE = 96

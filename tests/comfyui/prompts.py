"""The chain of the pack's nodes on the tiny files, in ComfyUI's API format."""

from copy import deepcopy
from typing import Any

Prompt = dict[str, dict[str, Any]]

# Node id -> node: from the loaders to the sampler.
SAMPLED: Prompt = {
    "load": {
        "class_type": "MagicDistillLoadModel",
        "inputs": {"unet_name": "tiny.safetensors", "weight_dtype": "default", "start_image_mode": "from the file"},
    },
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae.safetensors"}},
    "portrait": {"class_type": "MagicDistillPocketPortrait", "inputs": {"seed": 1, "size": 64}},
    "video": {
        "class_type": "MagicDistillPortraitToVideo",
        "inputs": {"model": ["load", 0], "vae": ["vae", 0], "start_image": ["portrait", 0]}
        | {"width": 0, "height": 0, "length": 0, "batch_size": 1},
    },
    "sample": {
        "class_type": "MagicDistillSampler",
        "inputs": {"model": ["load", 0], "conditioning": ["video", 0], "latent": ["video", 1]}
        | {"seed": 3, "steps": 0, "shift": 0.0, "sampler": "recipe"},
    },
}
# The same with decoding and saving.
CHAIN: Prompt = SAMPLED | {
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
    "save": {
        "class_type": "MagicDistillSaveVideo",
        "inputs": {"video": ["decode", 0], "fps": 8.0, "filename_prefix": "video/tiny"}
        | {"format": "mp4 (h264)", "crf": 18.0},
    },
}


def changed(prompt: Prompt, **changes: dict[str, Any]) -> Prompt:
    """Return a prompt with some nodes' inputs changed."""
    out = deepcopy(prompt)
    for node, inputs in changes.items():
        out[node]["inputs"] |= inputs
    return out


# The chain with two kinds of LoRA, and with the record in the file.
PORTRAIT: Prompt = changed(
    CHAIN, sample={"model": ["lora", 0], "conditioning": ["strengths", 0]}, save={"record": ["sample", 1]}
) | {
    "lora": {
        "class_type": "MagicDistillRealFakeLora",
        "inputs": {"model": ["load", 0], "lora_name": "tiny_fake.safetensors", "weight_real": 0.25, "weight_fake": 1.0},
    },
    "strengths": {
        "class_type": "MagicDistillLoraSteps",
        "inputs": {"model": ["load", 0], "conditioning": ["video", 0], "lora_name": "tiny_fake.safetensors"}
        | {"strengths": "1, 0", "steps": 0},
    },
}

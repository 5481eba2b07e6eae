"""Jobs about encoders: ComfyUI's CLIP vision models and UMT5, with few layers."""

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.text_encoders.wan import WanT5Model, WanT5Tokenizer
from safetensors.torch import load_file
from torch import Tensor


def job_clip_vision(job: dict) -> dict[str, Tensor]:
    """Encode an image as ComfyUI's CLIP Vision Encode does it, with its crop or without."""
    model = ClipVisionModel(job["config"])
    missing, unknown = model.load_sd(load_file(job["weights"]))
    assert set(missing) <= {"visual_projection.weight"}, missing
    assert not unknown, unknown
    out = model.encode_image(load_file(job["inputs"])["image"], crop=job["crop"])
    found = {"features": out["penultimate_hidden_states"]}
    return found if out["mm_projected"] is None else found | {"projected": out["mm_projected"]}


def job_umt5(job: dict) -> dict[str, Tensor]:
    """Encode texts as ComfyUI's CLIP Text Encode does it with Wan's text encoder."""
    with open(job["pieces"], "rb") as file:
        pieces = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    tokenizer = WanT5Tokenizer(tokenizer_data={"spiece_model": pieces})
    model = WanT5Model(dtype=torch.float32, model_options={"umt5xxl_model_config": job["config"]})
    missing, unknown = model.load_sd(load_file(job["weights"]))
    assert not missing, missing
    assert not unknown, unknown
    out = {}
    for number, text in enumerate(job["texts"]):
        states = model.encode_token_weights(tokenizer.tokenize_with_weights(text))[0]
        out[f"states.{number}"] = states
    return out

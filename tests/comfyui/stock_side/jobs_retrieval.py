"""Jobs about the node that finds similar pictures, with a tiny CLIP."""

from pathlib import Path
from unittest.mock import patch

import comfy.model_management
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from jobs_common import letters, load_pack, told
from safetensors.torch import load_file
from torch import Tensor


class TinyClip:
    """A text encoder as Load CLIP makes it, with few layers."""

    def __init__(self, job: dict) -> None:
        options = {"clip_l_model_config": job["text_config"]}
        self.cond_stage_model = SD1ClipModel(dtype=torch.float32, model_options=options)
        missing, unknown = self.cond_stage_model.load_sd(load_file(job["text_weights"]))
        assert not unknown, unknown
        assert set(missing) <= {"logit_scale"}, missing
        self.tokenizer = SD1Tokenizer()
        self.patcher = ModelPatcher(
            self.cond_stage_model, comfy.model_management.get_torch_device(), torch.device("cpu")
        )

    def tokenize(self, text: str) -> dict:
        return self.tokenizer.tokenize_with_weights(text)

    def load_model(self, tokens: object) -> ModelPatcher:
        return self.patcher


def job_similar(job: dict) -> dict[str, Tensor]:
    """Run the node for each query; return the name that it finds, its picture, and what it says."""
    nodes = load_pack()
    vision = ClipVisionModel(job["vision_config"])
    missing, unknown = vision.load_sd(load_file(job["vision_weights"]))
    assert not missing, missing
    assert not unknown, unknown
    clip, out = TinyClip(job), {}
    with (
        patch.object(folder_paths, "get_input_directory", lambda: job["input"]),
        patch.object(folder_paths, "get_output_directory", lambda: job["output"]),
        patch.object(folder_paths, "get_temp_directory", lambda: job["output"]),
    ):
        for number, query in enumerate(job["queries"]):
            given = {"folder": "", "rank": 1, "shown": 3, "clip_vision": vision} | query
            if given.get("text"):
                given["clip"] = clip
            if "image" in given:
                given["image"] = load_file(given["image"])["image"]
            found, said = told(nodes.SimilarPicture, **given)
            out[f"said.{number}"] = letters(said)
            out[f"mark.{number}"] = letters(nodes.SimilarPicture.fingerprint_inputs(**query | {"folder": ""}))
            if found:
                out[f"picture.{number}"], out[f"name.{number}"] = found[0], letters(found[1])
        frames = load_file(job["frames"])["frames"]
        out["identity of frames"] = nodes.long_video.identity_embedder(vision)(frames)
        out["mark of a linked folder"] = letters(nodes.SimilarPicture.fingerprint_inputs(folder=None) or "none")
        Path(job["input"], "00.png").touch()
        out["mark afterwards"] = letters(nodes.SimilarPicture.fingerprint_inputs(folder=""))
    return out

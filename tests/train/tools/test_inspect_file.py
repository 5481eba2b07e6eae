import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import TEXT_ONLY
from magicdistill_core.hashes import file_sha256, weights_sha256
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import file_to_diffusers
from magicdistill_core.lora_file import save_lora
from magicdistill_core.quantise import quantise_file
from magicdistill_core.safetensors_file import read_tensors
from tests.makers import hunyuan_shape, random_prompt, seeded_network
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.data.text_index import TextIndex
from train.networks.network import load_network
from train.tools.inspect_file import inspect_file


def test_a_teacher_tells_its_recipe_and_sizes(teacher_file: Path) -> None:
    facts = inspect_file(teacher_file, with_hash=True)
    network = load_network(load_checkpoint(teacher_file))
    assert facts["parameters"].startswith(f"{sum(p.numel() for p in network.parameters()):,} ")
    assert facts["kind"] == "HunyuanVideo transformer"
    assert facts["layout"] == "Tencent"
    assert facts["conditioning"].endswith("; 33 channels")
    assert facts["width"] == "128 (1 x 128)"
    assert facts["blocks"] == "1 double + 1 single, 2 text refiner"
    assert facts["null prompt"] == "3 tokens"
    assert facts["dtypes"] == "F32 (100% of the bytes)"
    assert (facts["recipe: kind"], facts["recipe: steps"], facts["recipe: shift"]) == ("teacher", "28", "5.0")
    assert facts["sha256"] == file_sha256(teacher_file)
    assert facts["size"].startswith(f"{teacher_file.stat().st_size:,} bytes")


def test_an_int8_file_is_the_same_network(tmp_path: Path, teacher_file: Path) -> None:
    done = quantise_file(teacher_file, tmp_path / "q.safetensors")
    facts, exact = inspect_file(tmp_path / "q.safetensors"), inspect_file(teacher_file)
    assert facts.pop("quantised") == f"yes ({len(done.errors)} scales)"
    assert "I8 (" in facts["dtypes"]
    own = ("file", "size", "dtypes")
    assert {key: facts[key] for key in facts if key not in own} == {k: exact[k] for k in exact if k not in own}


def test_captions_of_a_file_and_of_a_dataset_are_listed(tmp_path: Path, teacher_file: Path) -> None:
    teacher, file = load_checkpoint(teacher_file), tmp_path / "told.safetensors"
    assert teacher.recipe is not None
    captions = {"turns left": random_prompt(4), "speaks": random_prompt(2)}
    save_checkpoint(file, teacher.state, teacher.recipe, teacher.null_prompt, captions=captions)
    facts, silent = inspect_file(file), inspect_file(teacher_file)
    assert facts["captions"] == "speaks; turns left"
    assert facts["parameters"] == silent["parameters"]
    assert "captions" not in silent

    texts = TextIndex(encoder_sha256="ab" * 32, template="hunyuan_i2v_concat")
    index = DatasetIndex(frames=5, height=32, width=32, fps=24, vae_sha256="0" * 64, dtype="float32", texts=texts)
    with LatentWriter(tmp_path / "data", index) as writer:
        assert writer.texts is not None
        latent = torch.zeros(16, 2, 4, 4)
        prompts = writer.texts.refer("speaks", lambda text: random_prompt(3 + len(text)))
        writer.append("0", latent, StartImage(latent[None, :, :1]), prompts=prompts)
    said = inspect_file(tmp_path / "data")["captions"]
    assert said == "2 different ones, of 3 to 9 tokens, encoded with the start images"


@pytest.mark.parametrize(
    ("rename", "layout"),
    [
        (lambda key: f"model.diffusion_model.{key}", "Tencent, under model.diffusion_model."),
        (lambda key: key.replace("img_attn_qkv", "img_attn.qkv"), "ComfyUI"),
    ],
)
def test_spellings_are_told_apart(
    tmp_path: Path, teacher_file: Path, rename: Callable[[str], str], layout: str
) -> None:
    tensors, _ = read_tensors(teacher_file)
    save_file({rename(key): value for key, value in tensors.items()}, tmp_path / "a.safetensors")
    facts = inspect_file(tmp_path / "a.safetensors")
    assert (facts["layout"], facts["recipe"]) == (layout, "none")


def test_a_diffusers_folder_is_read_whole(tmp_path: Path, teacher_file: Path) -> None:
    state = file_to_diffusers(HUNYUAN_VIDEO, load_checkpoint(teacher_file).state, 128)
    keys = sorted(state)
    for number, part in enumerate((keys[:20], keys[20:])):
        save_file({key: state[key].half().clone() for key in part}, tmp_path / f"part-{number}.safetensors")
    facts = inspect_file(tmp_path, with_hash=True)
    assert (facts["layout"], facts["null prompt"]) == ("diffusers", "none")
    assert facts["dtypes"] == "F16 (100% of the bytes)"
    assert facts["sha256"] == weights_sha256(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no \.safetensors.*magicdistill export"):
        inspect_file(tmp_path / "empty")


def test_a_folder_of_several_networks_is_refused(tmp_path: Path, teacher_file: Path) -> None:
    shutil.copy(teacher_file, tmp_path / "generator.safetensors")
    branch = LowRank(torch.zeros(12, 128), torch.zeros(384, 12), alpha=6.0)
    recipe = load_checkpoint(teacher_file).recipe
    assert recipe is not None
    save_lora(tmp_path / "fake_lora.safetensors", {"double_blocks.0.img_attn_qkv": branch}, recipe)
    with pytest.raises(CheckpointError, match=r"fake_lora\.safetensors, generator\.safetensors"):
        inspect_file(tmp_path)


def test_a_dataset_tells_its_geometry(dataset_folder: Path) -> None:
    facts = inspect_file(dataset_folder)
    assert (facts["kind"], facts["samples"]) == ("latent dataset", "12")
    assert facts["geometry"] == "32 x 32, 5 frames, 24 fps"


def test_loras_vaes_and_unknown_files(tmp_path: Path, teacher_file: Path, taehv_file: Path) -> None:
    recipe = load_checkpoint(teacher_file).recipe
    assert recipe is not None
    path = tmp_path / "lora.safetensors"
    branch = LowRank(torch.zeros(12, 128), torch.zeros(384, 12), alpha=6.0)
    save_lora(path, {"double_blocks.0.img_attn_qkv": branch}, recipe.model_copy(update={"kind": "fake_lora"}))
    facts = inspect_file(path)
    assert facts["layout"] == "Tencent/ComfyUI names under diffusion_model.; lora_A/lora_B"
    assert facts["modules"] == "1, of which 1 belong to HunyuanVideo"
    assert (facts["ranks"], facts["alpha"], facts["recipe: kind"]) == ("12", "6", "fake_lora")

    save_file(
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_down.weight": torch.zeros(4, 128),
            "transformer.transformer_blocks.0.attn.to_q.lora_up.weight": torch.zeros(128, 4),
            "transformer.other.lora_down.weight": torch.zeros(4, 128),
            "transformer.other.lora_up.weight": torch.zeros(128, 4),
        },
        path,
    )
    facts = inspect_file(path)
    assert facts["layout"] == "diffusers names under transformer.; lora_down/lora_up"
    assert facts["modules"] == "2, of which 1 belong to HunyuanVideo"
    assert facts["alpha"].startswith("not stored")

    facts = inspect_file(taehv_file)
    assert (facts["kind"], facts["layout"]) == ("video autoencoder", "TAEHV")

    save_file({"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, path)
    facts = inspect_file(path)
    assert facts["kind"] == "unknown"
    assert "blocks.0.self_attn" in facts["why"]
    assert "HunyuanVideo" in facts["why"]


def test_every_kind_of_lora_is_told_apart(tmp_path: Path) -> None:
    module, path = "diffusion_model.double_blocks.0.img_attn_proj", tmp_path / "a.safetensors"
    down, up = torch.zeros(4, 128), torch.zeros(128, 4)
    save_file({f"{module}.lora.down.weight": down, f"{module}.lora.up.weight": up}, path)
    facts = inspect_file(path)
    assert (facts["kind"], facts["ranks"], facts["modules"]) == ("LoRA", "4", "1, of which 1 belong to HunyuanVideo")
    save_file({f"{module}.diff": torch.zeros(128, 128), f"{module}.diff_b": torch.zeros(128)}, path)
    facts = inspect_file(path)
    assert (facts["kind"], facts["full differences"], facts["ranks"]) == ("LoRA", "2 tensors", "none")
    assert "no pairs" in facts["layout"]
    save_file({f"{module}.lokr_w1": down, f"{module}.lokr_w2": up.clone()}, path)
    assert inspect_file(path)["kind"].startswith("LoKr adapter")


def test_unsafe_and_damaged_files_are_refused(tmp_path: Path, teacher_file: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        inspect_file(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(teacher_file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        inspect_file(tmp_path / "b.safetensors")


def test_files_of_frameworks_and_diffusers_are_inspected(tmp_path: Path, teacher_file: Path) -> None:
    state = load_checkpoint(teacher_file).state
    torch.save({"module": {f"model.{key}": value for key, value in state.items()}}, tmp_path / "a.pt")
    facts = inspect_file(tmp_path / "a.pt")
    assert (facts["layout"], facts["dtypes"]) == ("Tencent, under model.", "F32 (100% of the bytes)")
    network = seeded_network(hunyuan_shape(in_channels=16, guidance_embed=True), TEXT_ONLY)
    network.save_pretrained(tmp_path / "folder")
    facts = inspect_file(tmp_path / "folder")
    assert facts["conditioning"].endswith("text-to-video (i2v_mode=none); 16 channels")
    assert facts["guidance embedding"] == "yes"
    network.register_to_config(image_condition_type="token_replace")
    network.save_pretrained(tmp_path / "folder")
    assert inspect_file(tmp_path / "folder")["conditioning"].startswith("image-to-video by token replacement")

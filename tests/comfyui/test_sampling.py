"""The sampler, its parts, its record and its previews, inside a real ComfyUI."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.families.hunyuan_video import LATENT_SCALE
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.hashes import file_sha256
from magicdistill_core.media.video import read_video
from tests.makers import StockSide, write_half_taehv

from .messages import previews_of, watch
from .prompts import SAMPLED, Prompt, changed

pytestmark = pytest.mark.slow

SEED = 4321


@pytest.fixture(scope="module")
def model_file(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a generator with a guidance embedding."""
    file = tmp_path_factory.mktemp("sampling") / "guided.safetensors"
    recipe = tiny.recipe("generator", embedded_guidance=6.0)
    tiny.write_model(file, tiny.network(tiny.shape(128, True)), recipe, tiny.prompt())
    return file


@pytest.fixture(scope="module")
def answer(tiny: SimpleNamespace, model_file: Path, stock_side: StockSide) -> dict[str, Tensor]:
    """Return ComfyUI's answers for the same run, sampled in all ways."""
    folder = model_file.parent
    write_half_taehv(folder / "vae.safetensors")
    save_file({"image": torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(2))}, folder / "in.st")
    tiny.write_lora(folder / "lora.safetensors", tiny.branches(tiny.network(tiny.shape(128, True))), 128)
    job = {"model": str(model_file), "vae": str(folder / "vae.safetensors"), "inputs": str(folder / "in.st")}
    run = job | {"run": "parts", "seed": SEED, "lora": str(folder / "lora.safetensors")}
    samples, previews = stock_side([run, job | {"run": "previews"}])
    return samples | previews


def text(answer: dict[str, Tensor], name: str) -> str:
    """Return a text from the answers."""
    return bytes(answer[name].tolist()).decode()


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize("guider", ["parts", "cfg"])
def test_the_parts_sample_bit_equal_to_the_sampler_node(guider: str, sampler: str, answer: dict[str, Tensor]) -> None:
    assert answer[f"whole {sampler}"].std() > 0.1
    assert torch.equal(answer[f"{guider} {sampler}"], answer[f"whole {sampler}"])


def test_the_samplers_differ_and_are_not_their_starting_noise(answer: dict[str, Tensor]) -> None:
    difference = (answer["whole euler"] - answer["whole renoise"]).std()
    assert difference > 0.1 * answer["whole euler"].std()


def test_sigmas_serve_comfyuis_own_samplers(answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer["stock euler"], answer["whole euler"], atol=1e-3, rtol=1e-3)


def test_a_compiled_model_samples_the_same(answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer["compiled"], answer["whole euler"], atol=1e-4, rtol=1e-4)


def test_hooks_reach_the_model_and_leave_it_again(answer: dict[str, Tensor]) -> None:
    torch.testing.assert_close(answer["hooked"], answer["merged"], atol=1e-3, rtol=1e-3)
    assert (answer["hooked"] - answer["whole euler"]).std() > 1e-2 * answer["whole euler"].std()
    assert torch.equal(answer["unhooked"], answer["whole euler"])


def test_a_shift_set_by_another_node_is_reported(answer: dict[str, Tensor]) -> None:
    said = text(answer, "moved said")
    assert said.startswith("4 steps, shift 5, euler")
    assert re.search("another node .*MODEL's own shift .* 9", said)
    assert re.search(r"shift is 9\.0.* 5\.0", text(answer, "moved back said"))
    assert "another node" not in text(answer, "moved back said")


def test_settings_that_differ_are_reported(answer: dict[str, Tensor]) -> None:
    said = text(answer, "steps said")
    assert re.search(r"steps is 2.* 4\b", said)
    assert re.search(r"shift is 3\.0.* 5\.0", said)
    assert re.search(r"guidance is 3.* 6\b", text(answer, "guided said"))


def test_without_a_recipe_the_models_own_shift_is_used(answer: dict[str, Tensor]) -> None:
    assert "4 steps, shift 5 and euler" in text(answer, "bare said")
    assert "shift 9 (set on the MODEL) and euler" in text(answer, "bare moved said")


def test_the_record_repeats_the_run(answer: dict[str, Tensor], model_file: Path) -> None:
    record = json.loads(text(answer, "record"))
    assert record.pop("sigmas") == few_step_sigmas(4, 5).tolist()
    version = record.pop("magicdistill")
    assert tuple(int(part) for part in version.split(".")) >= (0, 1, 0)
    assert record == {
        "checkpoint": "guided.safetensors",
        "sha256": file_sha256(model_file),
        "weight_dtype": "default",
        "family": "hunyuan_video",
        "i2v_mode": "concat",
        "kind": "generator",
        "loras": [],
        "other_changes": [],
        "seed": SEED,
        "steps": 4,
        "shift": 5.0,
        "sampler": "euler",
        "guidance": 3.0,
        "image_in_noise": 0.0,
        "dropped_frames": 0,
    }


def test_the_record_of_another_loaders_model_has_null_for_unknown_facts(answer: dict[str, Tensor]) -> None:
    record = json.loads(text(answer, "bare record"))
    assert record["checkpoint"] is None
    assert record["sha256"] is None
    assert (record["family"], record["i2v_mode"], record["seed"]) == ("hunyuan_video", "concat", SEED)


PROMPT: Prompt = SAMPLED | {
    "record": {"class_type": "PreviewAny", "inputs": {"source": ["sample", 1]}},
    "latent": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "latents/tiny"}},
}


@pytest.mark.parametrize(("method", "frames"), [("taesd", 17), ("auto", 17), ("latent2rgb", 5)])
def test_every_step_sends_the_current_video(method: str, frames: int, server: Any) -> None:
    found, steps = previews_of(server, changed(PROMPT, sample={"seed": len(method)}), method)
    assert steps == [1, 2, 3, 4]
    assert len(found) == 4
    for picture in found:
        assert picture.format == "WEBP"
        assert picture.n_frames == frames
        shown = 1000 / 8 * (1 if frames == 17 else 4)
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == round(shown)
        assert picture.width * 48 == picture.height * 64
    first, last = (picture.convert("RGB") for picture in (found[0], found[-1]))
    assert first.tobytes() != last.tobytes()


def test_previews_take_no_memory_from_the_model_and_a_failed_one_ends_no_run(answer: dict[str, Tensor]) -> None:
    assert text(answer, "decoded").split() == ["decoded"] * 4 + ["missing"] * 4
    # One request per run, for the sampled model. Any other request could take that model's memory.
    assert text(answer, "loaded").split() == ["HunyuanVideoI2V"] * 3
    assert torch.equal(answer["previews on"], answer["previews off"])
    assert torch.equal(answer["previews missing"], answer["previews off"])


def test_previews_of_real_latents_show_their_video(
    model_file: Path, stock_side: StockSide, shared_data: Path, tmp_path: Path
) -> None:
    """A real clip of HunyuanVideo, in the network's scale: previews have its colours, and its frames in order."""
    raw = torch.from_numpy(np.load(shared_data / "latents" / "hunyuan_129x416x544.npy")).float()
    save_file({"latents": raw * LATENT_SCALE}, tmp_path / "in.st")
    (answer,) = stock_side([{"run": "preview_frames", "model": str(model_file), "inputs": str(tmp_path / "in.st")}])
    pictures = answer["pictures"].float()
    assert (len(pictures), int(answer["share"])) == (33, 4)
    clip = torch.stack(list(read_video(shared_data / "latents" / "hunyuan_129x832x1088.mp4").frames))
    shown = torch.nn.functional.interpolate(clip[::4].movedim(-1, 1).float(), size=pictures.shape[2:], mode="area")
    assert len(shown) == 33
    likeness = torch.corrcoef(torch.cat([pictures.flatten(1), shown.flatten(1)]))[:33, 33:]
    assert likeness.diagonal().min() > 0.7
    assert (pictures - shown).abs().mean(dim=(1, 2, 3)).max() < 30
    # The clip moves most at its beginning. A latent covers the three frames before its own, too.
    nearest = likeness[:10].argmax(dim=1)
    assert (nearest - torch.arange(10)).abs().max() <= 1


def test_no_previews_are_made_where_they_are_switched_off(server: Any) -> None:
    found, steps = previews_of(server, changed(PROMPT, sample={"seed": 99}), "none")
    assert found == []
    assert steps[-1] == 4


def test_cancelling_stops_within_one_step(server: Any) -> None:
    seen: list[float] = []
    at_interrupt: list[float] = []

    def on_message(message: dict | bytes) -> bool:
        if isinstance(message, bytes):
            return False
        if message["type"] == "progress" and message["data"]["node"] == "sample":
            seen.append(message["data"]["value"])
            if not at_interrupt and seen[-1] >= 5:
                server.post("/interrupt", {})
                at_interrupt.append(seen[-1])
        assert message["type"] != "execution_success"
        return message["type"] == "execution_interrupted"

    body = {
        "prompt": changed(PROMPT, sample={"steps": 1000, "seed": 7}),
        "extra_data": {"preview_method": "latent2rgb"},
    }
    watch(server, body, on_message)
    # One step may end before the interruption arrives, and one message may still be unread.
    assert seen[-1] <= at_interrupt[0] + 3


def test_the_record_goes_on_to_other_nodes(server: Any) -> None:
    (said,) = server.run(changed(PROMPT, sample={"seed": 12}))["record"]["text"]
    record = json.loads(said)
    file = server.directory / "models" / "diffusion_models" / "tiny.safetensors"
    assert record["sha256"] == file_sha256(file)
    assert record["seed"] == 12
    assert record["guidance"] is None

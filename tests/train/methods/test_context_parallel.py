"""Trainings whose processes share samples equal the same trainings on one process: every method and every family.

The clips have 9 video tokens, so the two shards differ. Losses and gradient norms are compared before Adam hides their
scale, and the trained weights after two updates.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO
from magicdistill_core.prompt_templates import MAGIC141
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_tensors
from tests.makers import file_state, hunyuan_shape, json_lines, metrics_of, random_prompt, wan_shape
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.data.text_index import TextIndex

SIZE = {"width": 16, "height": 48, "frames": 9, "fps": 24}
WORDS = {"speaks": random_prompt(4, seed=5), "blinks": random_prompt(1, seed=8), "": random_prompt(2, seed=6)}
DISCRIMINATOR = {"optimizer": {"lr": 1e-3}, "weight": 0.5, "r1": 1.0}


def dataset(folder: Path, family: Family, captions: bool = False) -> Path:
    """Random latents, for HunyuanVideo on request with captions of different lengths."""
    texts = TextIndex(encoder_sha256="ab" * 32, template=MAGIC141) if captions else None
    index = DatasetIndex(**SIZE, family=family.architecture.name, vae_sha256="0" * 64, dtype="float32", texts=texts)
    generator = torch.Generator().manual_seed(1)
    with LatentWriter(folder, index) as writer:
        for number in range(4):
            latent = torch.randn(16, 3, 6, 2, generator=generator)
            image = StartImage(latent[None, :, :1])
            if family is IMAGE_TO_VIDEO:
                image = StartImage(latent[None], torch.randn(1, *FEATURE_SHAPE, generator=generator))
            prompts = None
            if writer.texts is not None:
                prompts = writer.texts.refer(["speaks", "blinks"][number % 2], WORDS.__getitem__)
            writer.append(f"{number}", latent, image, prompts=prompts)
    return folder


def teacher(file: Path, family: Family, seed: int = 0, **changes: Any) -> Path:
    """Random weights of two heads."""
    wan = family is IMAGE_TO_VIDEO
    few = {"kind": "generator", "steps": 2} if seed else {"kind": "teacher", "steps": 28}
    names = {"family": family.architecture.name, "i2v_mode": family.i2v_mode}
    shape = wan_shape if wan else hunyuan_shape
    shaped = shape(hidden=256, **({"blocks": 1} if wan else {"in_channels": family.in_channels}), **changes)
    recipe = Recipe(shift=5.0, **few, **names, **SIZE)
    save_checkpoint(file, file_state(shaped, family, seed), recipe, random_prompt(pooled_dim=None if wan else 768))
    return file


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Teachers and datasets by name."""
    folder = tmp_path_factory.mktemp("inputs")
    families = {"concat": CONCAT, "token_replace": TOKEN_REPLACE, "wan": IMAGE_TO_VIDEO}
    # Token replacement as in its release: with a guidance embedding.
    guided = {"token_replace": {"guidance_embed": True}}
    made = {
        name: teacher(folder / f"{name}.safetensors", family, **guided.get(name, {}))
        for name, family in families.items()
    }
    made["guided"] = teacher(folder / "guided.safetensors", CONCAT, guidance_embed=True)
    made["few"] = teacher(folder / "few.safetensors", CONCAT, seed=1)
    made["clips"], made["wan clips"] = dataset(folder / "c", CONCAT), dataset(folder / "w", IMAGE_TO_VIDEO)
    made["captions"] = dataset(folder / "t", CONCAT, captions=True)
    return {name: str(path) for name, path in made.items()}


# By name: the teacher, the data, the mode, and the method. A round of w2s has guidance, supervision and captions with
# padding, as Magic 1-For-1's network has.
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "w2s": ("concat", "captions", "lora", {"name": "w2s", "guidance_scale": 3.0, "supervision": {"weight": 0.25}}),
    "dmd2": ("concat", "clips", "full", {"name": "dmd2", "discriminator": DISCRIMINATOR}),
    "one_step": ("concat", "clips", "full", {"name": "one_step"}),
    "lcm": ("concat", "clips", "lora", {"name": "lcm", "ode_steps": 6}),
    "cfg": ("guided", "captions", "full", {"name": "cfg", "scale_min": 1.0, "scale_max": 8.0}),
    "sft": ("concat", "captions", "full", {"name": "sft"}),
    "token_replace": ("token_replace", "clips", "lora", {"name": "dmd2", "discriminator": DISCRIMINATOR}),
    "wan": ("wan", "wan clips", "lora", {"name": "w2s"}),
}


@pytest.fixture
def trained(
    tmp_path: Path, tiny_config: Callable[..., dict], live: Callable[..., Any], inputs: Mapping[str, str]
) -> Callable[..., list[Path]]:
    """Trains cases in some processes, `degree` of which share a sample; two updates of a global batch of two."""

    def build(case: str, run: str, processes: int, degree: int, sections: Mapping[str, Any]) -> dict:
        network, data, mode, method = CASES[case]
        tree = tiny_config(tmp_path / f"{case}-{run}", method=dict(method), context_parallel=degree)
        tree["model"] |= {"teacher": inputs[network], "mode": mode, "activation_checkpointing": mode == "lora"}
        batch = 2 * degree // processes
        tree["data"] = {"dataset": inputs[data], "captions": data == "captions", "micro_batch": batch}
        if method["name"] in ("w2s", "dmd2", "one_step"):
            tree["method"]["fake_updates"] = 1
        else:
            del tree["fake_optimizer"]
        if case == "one_step":
            tree["method"]["few_step_generator"] = inputs["few"]
            tree["schedule"] = {"steps": 1}
        return tree | {"checkpoint": {"every": 1, "keep": 2}, "guard": {"action": "off"}} | sections

    def train(cases: list[str], run: str, processes: int, degree: int, *flags: str, **sections: Any) -> list[Path]:
        trees = [build(case, run, processes, degree, sections) for case in cases]
        written = []
        for tree in trees[1:]:
            written.append([str(tmp_path / f"{Path(tree['run']).name}.yaml")])
            Path(written[-1][0]).write_text(yaml.safe_dump(tree))
        done = live(trees[0], *flags, then=written, processes=processes)
        assert set(done.codes) == {0}, done.said[-6000:]
        return [Path(tree["run"]) for tree in trees]

    return train


def weights(run: Path, step: int) -> dict[str, Tensor]:
    """The fp32 weights of all trained networks, by network and parameter."""
    found = {}
    for file in sorted((run / "checkpoints" / f"step-{step:06d}").glob("*.safetensors")):
        found |= {f"{file.name}/{name}": tensor.double() for name, tensor in read_tensors(file)[0].items()}
    return found


def assert_equal(found: Path, expected: Path) -> None:
    """Equal metrics, gradient norms among them, and equal ways of the weights from update 1 to 2."""
    rows, wanted = metrics_of(found), metrics_of(expected)
    assert len(rows) == 2
    for row, want in zip(rows, wanted, strict=True):
        assert row == pytest.approx(want, rel=2e-3, abs=1e-5), found.name
    # Before any difference that Adam makes of a rounding.
    assert rows[0] == pytest.approx(wanted[0], rel=2e-4, abs=1e-6), found.name
    start, end, own = weights(expected, 1), weights(expected, 2), weights(found, 2)
    assert own.keys() == end.keys()
    way = sum(float((end[name] - start[name]).square().sum()) for name in end)
    off = sum(float((own[name] - end[name]).square().sum()) for name in end)
    assert way > 0
    assert off < 1e-2**2 * way, (found.name, (off / way) ** 0.5)


@pytest.mark.timeout(600)
def test_two_processes_that_share_their_samples_equal_one(trained: Callable[..., list[Path]]) -> None:
    alone, shared = trained(list(CASES), "alone", 1, 1), trained(list(CASES), "shared", 2, 2)
    for found, expected in zip(shared, alone, strict=True):
        assert_equal(found, expected)


@pytest.mark.timeout(600)
def test_two_pairs_of_processes_validate_and_train_as_one_process(trained: Callable[..., list[Path]]) -> None:
    """Also without ZeRO, and with the average of the weights."""
    sections = {
        "validation": {"every": 2, "samples": 3, "seeds": 2},
        "zero": {"stage": 0},
        "generator_ema": {"decay": 0.5},
    }
    (alone,), (shared,) = trained(["dmd2"], "alone", 1, 1, **sections), trained(["dmd2"], "pairs", 4, 2, **sections)
    assert_equal(shared, alone)
    measured, expected = (json_lines(run / "validation.jsonl") for run in (shared, alone))
    assert measured == [pytest.approx(row, rel=1e-3, abs=1e-4) for row in expected]
    assert [row["step"] for row in measured] == [0, 2]


@pytest.mark.timeout(600)
def test_a_run_continues_equally_at_another_degree(trained: Callable[..., list[Path]]) -> None:
    """From one process, to two that share their samples, at ZeRO-3."""
    (whole,) = trained(["w2s"], "whole", 1, 1)
    parts = whole.with_name("w2s-parts")
    shutil.copytree(whole, parts)
    (parts / "checkpoints" / "latest").write_text("step-000001")
    (found,) = trained(["w2s"], "parts", 2, 2, "--resume", zero={"stage": 3})
    assert_equal(found, whole)
    resumed = json_lines(parts / "events.jsonl")[-3:]
    assert any(event.get("changed", {}).get("context_parallel") == [1, 2] for event in resumed), resumed


@pytest.mark.parametrize(
    ("teacher", "degree", "says"),
    [("wan", 4, "has 2 attention heads"), ("wan", 3, "has 4 processes")],
)
def test_a_degree_that_does_not_divide_is_refused_before_anything_is_loaded(
    teacher: str, degree: int, says: str, tmp_path: Path, tiny_config: Callable, live: Callable, inputs: Mapping
) -> None:
    tree = tiny_config(tmp_path / "run", context_parallel=degree)
    tree["model"]["teacher"], tree["data"]["dataset"] = inputs[teacher], inputs["wan clips"]
    refused = live(tree, processes=4)
    assert set(refused.codes) == {2}
    assert says in refused.said
    assert f"context_parallel is {degree}" in refused.said
    assert "allow 1, 2." in refused.said
    assert not (tmp_path / "run" / "checkpoints").exists()

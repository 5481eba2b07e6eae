"""Fixtures around a real ComfyUI: its folder, tiny files for it, and one running server for all tests."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import file_sha256, save_checkpoint, save_lora
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS, NetworkShape, NullPrompt
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.recipe import Recipe
from train.comfyui import ComfyUIError, find_comfyui
from train.network import build_network

RANK, ALPHA = 4, 8.0
LORA_MODULES = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.to_v",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.0.attn.to_add_out",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff_context.net.2",
    "single_transformer_blocks.1.attn.to_q",
    "single_transformer_blocks.1.attn.to_v",
    "single_transformer_blocks.1.proj_mlp",
    "single_transformer_blocks.1.proj_out",
)


@pytest.fixture(scope="session")
def comfyui_dir() -> Path:
    """A real ComfyUI: COMFYUI_DIR, or a copy fetched once into the cache."""
    try:
        return find_comfyui()
    except ComfyUIError as error:
        pytest.skip(f"no ComfyUI to test against: {error}")


def tiny_recipe(kind: str, **changes: object) -> Recipe:
    """A recipe for 17 frames of 64 x 48 pixels."""
    fields = {"kind": kind, "steps": 4, "shift": 5.0, "width": 64, "height": 48, "frames": 17, "fps": 8.0}
    return Recipe.model_validate(fields | changes)


def tiny_shape(hidden: int = 128, guidance_embed: bool = False, in_channels: int = CONCAT_CHANNELS) -> NetworkShape:
    """The sizes of a network of two double, two single and two refiner blocks."""
    return NetworkShape(in_channels, hidden, 2, 2, 2, 32, 768, guidance_embed)


def random_network(shape: NetworkShape, seed: int = 0) -> torch.nn.Module:
    """A network with random weights, biases and norms, so that no path through it is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(shape)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0.0, 0.08)
    return network.eval()


def random_prompt() -> NullPrompt:
    """A null prompt of five tokens."""
    generator = torch.Generator().manual_seed(5)
    return NullPrompt(torch.randn(1, 5, 32, generator=generator), torch.randn(1, 768, generator=generator))


def random_branches(network: torch.nn.Module) -> dict[str, LowRank]:
    """Branches of some diffusers-named modules, q, k and v split and not complete."""
    generator = torch.Generator().manual_seed(9)
    branches = {}
    for name in LORA_MODULES:
        out, width = network.get_submodule(name).weight.shape
        down = torch.randn(RANK, width, generator=generator) * 0.1
        branches[name] = LowRank(down, torch.randn(out, RANK, generator=generator) * 0.1, ALPHA)
    return branches


def write_model(path: Path, network: torch.nn.Module, recipe: Recipe, prompt: NullPrompt | None) -> None:
    """The network as a file of the file layout."""
    save_checkpoint(path, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), recipe, prompt)


def write_lora(path: Path, branches: dict[str, LowRank], hidden: int, base: Path | None = None) -> None:
    """The branches as a fake LoRA file, q, k and v fused."""
    recipe = tiny_recipe("fake_lora", base_hash=file_sha256(base) if base else None)
    save_lora(path, to_file_layout(HUNYUAN_VIDEO, branches, hidden), recipe)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The makers of tiny files above, as a fixture because test modules cannot import from here."""
    return SimpleNamespace(
        branches=random_branches,
        network=random_network,
        prompt=random_prompt,
        recipe=tiny_recipe,
        shape=tiny_shape,
        write_lora=write_lora,
        write_model=write_model,
        scale=ALPHA / RANK,
    )


@pytest.fixture(scope="session")
def stock_side(comfyui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict]], None]:
    """Runs jobs inside one process that has ComfyUI, and not the trainer, on its path; see `stock_side.py`."""

    def run(jobs: list[dict]) -> None:
        folder = tmp_path_factory.mktemp("stock")
        (folder / "jobs.json").write_text(json.dumps(jobs))
        script = Path(__file__).with_name("stock_side.py")
        command = [sys.executable, str(script), str(comfyui_dir), str(folder / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    return run

"""Makers of tiny networks, prompts and files, and other helpers that tests of several rooms need."""

import copy
import json
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.branch import LowRank
from magicdistill_core.families.base import Family, NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT, NetworkShape
from magicdistill_core.families.wan import WanShape
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.pocket.files import CAPTIONED_4STEP_LORA, CAPTIONED_LORA
from magicdistill_core.taehv import TAEHV
from train.networks.network import build_network

# Runs jobs in a real ComfyUI and returns the tensors of each; the type of the fixture `stock_side`.
StockSide = Callable[[list[dict]], list[dict[str, Tensor]]]


def hunyuan_shape(**changes: Any) -> NetworkShape:
    """The smallest HunyuanVideo: one head, one double, one single and one refiner block; 33 input channels."""
    sizes = {"in_channels": 33, "hidden": 128, "double_blocks": 1, "single_blocks": 1, "refiner_blocks": 1}
    inputs = {"text_dim": 16, "pooled_dim": 768, "guidance_embed": False}
    return NetworkShape(**(sizes | inputs | changes))


def wan_shape(**changes: Any) -> WanShape:
    """A Wan 2.1 of two blocks of one head."""
    sizes = {"in_channels": 36, "hidden": 128, "mlp": 192, "blocks": 2, "text_dim": 16, "frequencies": 256}
    return WanShape(**(sizes | changes))


def seeded_network(shape: Any, family: Family = CONCAT, seed: int = 0) -> Any:
    """A network with diffusers' random initialisation from a seed; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(shape, family)


def file_state(shape: Any, family: Family = CONCAT, seed: int = 0) -> dict[str, Tensor]:
    """The weights of `seeded_network` in the file layout."""
    return diffusers_to_file(family.architecture.layout, seeded_network(shape, family, seed).state_dict())


def branches(seed: int) -> dict[str, LowRank]:
    """Random branches of rank 4, with alpha / rank 2, for two modules of the smallest HunyuanVideo."""
    generator = torch.Generator().manual_seed(seed)
    modules = {"double_blocks.0.img_attn_qkv": (384, 128), "single_blocks.0.linear2": (128, 640)}
    return {
        name: LowRank(
            torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator) / 50, alpha=8.0
        )
        for name, (rows, columns) in modules.items()
    }


def random_prompt(tokens: int = 3, text_dim: int = 16, pooled_dim: int | None = 768, seed: int = 1) -> NullPrompt:
    """Random text states, and pooled text unless `pooled_dim` is None."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, text_dim, generator=generator)
    return NullPrompt(text, None if pooled_dim is None else torch.randn(1, pooled_dim, generator=generator))


def write_half_taehv(path: Path, seed: int = 1) -> None:
    """Write a random autoencoder in fp16, by which ComfyUI recognises HunyuanVideo's latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file({key: value.half() for key, value in TAEHV().state_dict().items()}, path)


def merged_network(network: torch.nn.Module, branches: Mapping[str, LowRank], weight: float) -> torch.nn.Module:
    """A copy of the network with `theta + weight * alpha / rank * up @ down` merged into its split modules."""
    merged = copy.deepcopy(network)
    with torch.no_grad():
        for name, branch in branches.items():
            scale = weight * branch.alpha / len(branch.down)
            merged.get_submodule(name).weight += scale * (branch.up @ branch.down)
    return merged


# Files that ship with the repository once they are trained.
TRAINED_LATER = (CAPTIONED_LORA, CAPTIONED_4STEP_LORA)


def skip_without_weights(*needed: Path) -> None:
    """Skip the test if a model file that ships with the repository has not been trained yet.

    Args:
        needed: the files that the test needs; without any, all of `TRAINED_LATER`.
    """
    for file in needed or TRAINED_LATER:
        if not file.is_file():
            pytest.skip(f"{file.name} is not there yet")


def json_lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics_of(run: Path) -> list[dict]:
    """The logged metrics of a run, without the clock."""
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in json_lines(run / "metrics.jsonl")
    ]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file of more than `size` bytes, as on a full disk."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

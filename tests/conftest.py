"""Fixtures that every test may use."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.taehv import TAEHV

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, stills and weights beside the repository; tests that need it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real test inputs are not there ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def taehv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE file in the TAEHV layout with random weights, whose decoded pictures have contrast."""
    path = tmp_path_factory.mktemp("taehv") / "vae.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in TAEHV().state_dict().items():
        spread = value[0].numel() ** -0.5 if value.ndim == 4 else 0.0
        state[key] = spread * torch.randn(value.shape, generator=generator)
    state["decoder.22.bias"] += 0.5
    save_file(state, path)
    return path

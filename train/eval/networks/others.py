"""Networks that kept packages or TorchScript provide: Inception-v3, I3D, AMT-S and MUSIQ."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""A function from frames or clips to feature vectors `[N, D]`."""
Interpolate = Callable[[Tensor, Tensor], Tensor]
"""A function from two pictures `[1, 3, H, W]` in [0, 1] to the picture in the middle."""


def load_inception(path: Path, device: torch.device) -> Features:
    """Load FID's Inception-v3 through torch-fidelity, which resizes as TensorFlow did.

    Args:
        path: its weights.
        device: where it computes.

    Returns:
        A function from uint8 pictures `[N, 3, H, W]` to features `[N, 2048]`.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    network = network.eval().to(device)

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        return network(pictures.to(device))[0].float().cpu()

    return features


def load_i3d(path: Path, device: torch.device) -> Features:
    """Load FVD's I3D, a TorchScript file that rescales and resizes by itself.

    Args:
        path: `i3d_torchscript.pt`.
        device: where it computes.

    Returns:
        A function from clips `[N, 3, T, H, W]` in levels of 0 to 255 to features `[N, 400]`.
    """
    network = torch.jit.load(path, map_location=device).eval()

    @torch.no_grad()
    def features(clips: Tensor) -> Tensor:
        return network(clips.to(device).float(), rescale=True, resize=True, return_features=True).float().cpu()

    return features


def load_amt(path: Path, device: torch.device) -> Interpolate:
    """Load AMT-S with the network code in the package vbench.

    Args:
        path: `amt-s.pth`.
        device: where it computes.
    """
    network = _part_of("vbench", "third_party.amt.networks.AMT-S").Model()
    # The file also holds the settings of its training, as objects that weights_only refuses unless they are plain.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    network = network.eval().to(device)
    middle = torch.full((1, 1, 1, 1), 0.5, device=device)

    @torch.no_grad()
    def interpolate(first: Tensor, second: Tensor) -> Tensor:
        made = network(first.to(device), second.to(device), middle, scale_factor=1.0, eval=True)
        return made["imgt_pred"].cpu()

    return interpolate


def load_musiq(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load MUSIQ through pyiqa.

    Args:
        path: `musiq_spaq_ckpt-358bb6af.pth`.
        device: where it computes.

    Returns:
        A function from one picture `[1, 3, H, W]` in [0, 1] to its score of 0 to 100.
    """
    from pyiqa.archs.musiq_arch import MUSIQ

    network = MUSIQ(pretrained_model_path=str(path)).eval().to(device)

    @torch.no_grad()
    def score(picture: Tensor) -> Tensor:
        return network(picture.to(device)).float().cpu()

    return score


def _part_of(package: str, name: str) -> ModuleType:
    """Import a module of a package without running the package's own `__init__`, which needs many more packages."""
    if package in sys.modules:
        return import_module(f"{package}.{name}")
    spec = find_spec(package)
    assert spec is not None
    hull = ModuleType(package)
    hull.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[package] = hull
    try:
        return import_module(f"{package}.{name}")
    finally:
        for loaded in [loaded for loaded in sys.modules if loaded == package or loaded.startswith(f"{package}.")]:
            del sys.modules[loaded]

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from train.eval.networks.lpips import load_lpips, write_weights
from train.eval.networks.others import load_i3d, load_inception
from train.eval.networks.rife import Rife, warp

CPU = torch.device("cpu")
KINDS = ("weight", "bias")


def picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None].float() / 255


def test_lpips_has_the_published_distances(shared_data: Path) -> None:
    network = load_lpips(shared_data / "lpips" / "lpips_alex.safetensors", CPU)
    reference, first, second = (picture(shared_data / "lpips" / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    assert network(reference, first).item() == pytest.approx(0.7219, abs=1e-4)
    assert network(reference, second).item() == pytest.approx(0.1376, abs=1e-4)
    # A batch gives the same as its pictures one by one.
    both = network(torch.cat([reference, reference]), torch.cat([first, second]))
    assert both.tolist() == pytest.approx([0.7219, 0.1376], abs=1e-4)


def test_the_weights_of_lpips_can_be_made_from_their_sources(shared_data: Path, tmp_path: Path) -> None:
    known = shared_data / "lpips" / "lpips_alex.safetensors"
    weights = load_file(known)
    places = (0, 3, 6, 8, 10)
    names = [(f"features.{place}.{kind}", f"conv{n}.{kind}") for n, place in enumerate(places) for kind in KINDS]
    torch.save({theirs: weights[ours] for theirs, ours in names}, tmp_path / "alexnet.pth")
    heads = {f"lin{n}.model.1.weight": weights[f"lin{n}.weight"].view(1, -1, 1, 1) for n in range(5)}
    torch.save(heads, tmp_path / "alex.pth")
    write_weights(tmp_path / "alexnet.pth", tmp_path / "alex.pth", tmp_path / "made.safetensors")
    assert (tmp_path / "made.safetensors").read_bytes() == known.read_bytes()


def test_inception_gives_the_features_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patched:
        patched.setattr(extractor, "load_state_dict", lambda self, weights: None)
        patched.setattr(module.torch, "load", lambda path, **_: {})
        patched.setattr(module, "load_state_dict_from_url", lambda *_args, **_options: {})
        network = extractor("random", ["2048"], feature_extractor_weights_path="none").eval()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    pictures = (255 * torch.rand(2, 3, 40, 60)).to(torch.uint8)
    with torch.no_grad():
        expected = network(pictures)[0]
    found = load_inception(path, CPU)(pictures)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, expected)


class Detector(torch.nn.Module):
    """A network with the interface of StyleGAN-V's I3D."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if not (rescale and resize and return_features):
            return x
        return x.mean((2, 3, 4)) / 255


def test_i3d_is_called_with_its_own_rescaling(tmp_path: Path) -> None:
    torch.jit.script(Detector()).save(str(tmp_path / "i3d.pt"))
    clip = torch.full((1, 3, 16, 8, 8), 51, dtype=torch.uint8)
    assert load_i3d(tmp_path / "i3d.pt", CPU)(clip).tolist() == [[pytest.approx(0.2)] * 3]


def test_a_warp_of_whole_pixels_moves_the_picture() -> None:
    x = torch.rand(1, 3, 8, 10)
    flow = torch.zeros(1, 2, 8, 10)
    flow[:, 0], flow[:, 1] = 2, -1
    moved = warp(x, flow)
    torch.testing.assert_close(moved[:, :, 1:, :-2], x[:, :, :-1, 2:], rtol=1e-4, atol=1e-5)


def test_rife_without_motion_mixes_both_frames_equally() -> None:
    def weight(*shape: int) -> Tensor:
        return torch.zeros(*shape)

    weights = {}
    for number, (inputs, width) in enumerate(((7, 8), (12, 8), (12, 8), (12, 8))):
        name = f"block{number}"
        layers = [(f"{name}.conv0.0", width // 2, inputs), (f"{name}.conv0.1", width, width // 2)]
        layers += [(f"{name}.convblock.{layer}", width, width) for layer in range(8)]
        for layer, outputs, channels in layers:
            weights |= {f"{layer}.0.weight": weight(outputs, channels, 3, 3), f"{layer}.0.bias": weight(outputs)}
            weights[f"{layer}.1.weight"] = weight(outputs)
        weights |= {f"{name}.lastconv.weight": weight(width, 5, 4, 4), f"{name}.lastconv.bias": weight(5)}
    first, second = torch.rand(1, 3, 32, 64), torch.rand(1, 3, 32, 64)
    torch.testing.assert_close(Rife(weights)(first, second), (first + second) / 2, rtol=1e-4, atol=1e-5)

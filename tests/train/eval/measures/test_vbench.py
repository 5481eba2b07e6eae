"""VBench's dimensions against vbench's own functions, with injected networks on the same frames."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.train.eval.vbench_source import vbench_modules
from train.eval.folders import Item
from train.eval.frames import VideoFacts
from train.eval.measures.pixels import PIXELS
from train.eval.measures.smoothness import Smoothness
from train.eval.measures.vbench import Dynamics, FrameScore, Subject, aesthetic_pixels, imaging_pixels

_NAMES = (
    *("subject_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality"),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vbench(skip_or_fail: Callable[[str, str], NoReturn]) -> Iterator[dict[str, Any]]:
    pytest.importorskip("cv2")
    names = [f"vbench.{name}" for name in _NAMES]
    try:
        with vbench_modules(*names, "vbench2_beta_i2v.i2v_subject") as modules:
            yield dict(zip((*_NAMES, "i2v_subject"), modules, strict=True))
    except OSError as error:
        skip_or_fail("vbench", f"vbench 0.1.5 cannot be downloaded: {error}")


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """A picture that moves and becomes darker, `[21, 300, 200, 3]`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 30, 20, generator=generator)
    large = torch.nn.functional.interpolate(noise, (300, 200), mode="bicubic").clamp(0, 1)
    shown = [torch.roll(large, (7 * step, 3 * step), (2, 3)) * (1 - 0.03 * step) for step in range(21)]
    return (255 * torch.cat(shown)).round().to(torch.uint8).movedim(1, -1).contiguous()


def facts(frames: Tensor, fps: float = 24.0) -> VideoFacts:
    return VideoFacts(frames.shape[2], frames.shape[1], fps, "h264", None)


class Embedding(torch.nn.Module):
    """A network with fixed random weights, from pictures of any size to 16 numbers of both signs."""

    def __init__(self, outputs: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(outputs, 3, 16, 16, generator=generator)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(pictures, self.weight, stride=16).sum((2, 3))

    encode_image = forward


def feed(accumulator: Any, frames: Tensor) -> Any:
    for group in frames.split(5):
        accumulator.add(group)
    return accumulator.finish()


def read_as(module: ModuleType, frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_video", lambda _path: frames.movedim(-1, 1))


def test_subject_consistency(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    read_as(vbench["subject_consistency"], frames, monkeypatch)
    expected, _ = vbench["subject_consistency"].subject_consistency(Embedding(), ["a.mp4"], CPU, False)
    scores = feed(Subject(Embedding(), Item("a", Path("a")), facts(frames)), frames)
    assert scores.values["subject_consistency"] == pytest.approx(expected, abs=1e-5)
    assert 0 < expected < 1


def test_i2v_subject(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(frames[3].numpy()).save(image)
    read_as(vbench["i2v_subject"], frames, monkeypatch)
    with torch.no_grad():
        expected, _ = vbench["i2v_subject"].i2v_subject(Embedding(), [(str(image), "a.mp4")], CPU)
    scores = feed(Subject(Embedding(), Item("a", Path("a"), image), facts(frames)), frames)
    assert scores.values["i2v_subject"] == pytest.approx(expected, abs=1e-5)


def test_temporal_flickering(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    module = vbench["temporal_flickering"]
    monkeypatch.setattr(module, "get_frames", lambda _path: [frame.numpy() for frame in frames])
    expected, _ = module.temporal_flickering(["a.mp4"])
    scores = feed(PIXELS.make({}, CPU)(Item("a", Path("a")), facts(frames)), frames)
    assert scores.values["temporal_flickering"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [20, 21])
def test_motion_smoothness(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    some = frames[:count]

    def network(first: Tensor, second: Tensor, _time: Tensor, **_options: Any) -> dict[str, Tensor]:
        # Not symmetric, sees the padding, and leaves [0, 1].
        return {"imgt_pred": (0.7 * first + 0.4 * second).roll(1, -1) - 0.02}

    module = vbench["motion_smoothness"]
    monkeypatch.setattr(module.MotionSmoothness, "load_model", lambda self: setattr(self, "model", network))
    motion = module.MotionSmoothness("", "", "cpu")
    monkeypatch.setattr(motion.fp, "get_frames", lambda _path: [frame.numpy() for frame in some])
    expected = motion.motion_score("a.mp4")
    ours = Smoothness("m", lambda a, b: network(a, b, torch.tensor(0))["imgt_pred"], 16, facts(some))
    assert feed(ours, some).values["m"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.5, 4.0, 9.0])
def test_dynamic_degree(
    vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        return strength * 0.1 * (second - first)[:, :2]

    module = vbench["dynamic_degree"]
    monkeypatch.setattr(module.DynamicDegree, "load_model", lambda self: None)
    dynamic = module.DynamicDegree(None, CPU)
    dynamic.model = lambda first, second, **_options: (None, flow(first, second))
    seen = [frame.movedim(-1, 0)[None].float() for frame in frames]
    monkeypatch.setattr(dynamic, "get_frames", lambda _path: dynamic.extract_frame(seen, 3))
    expected = dynamic.infer("a.mp4")

    def padded(first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        rows, columns = -height % 8, -width % 8
        edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        first, second = (torch.nn.functional.pad(x, edges, mode="replicate") for x in (first, second))
        return flow(first, second)[0]

    assert feed(Dynamics(padded, facts(frames)), frames).values["dynamic_degree"] == float(expected)


def test_dynamic_degree_finds_both_still_and_moving() -> None:
    still = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)
    constant = {value: (lambda _a, _b, value=value: torch.full((2, 64, 64), value)) for value in (0.5, 3.0)}
    degrees = {value: feed(Dynamics(flow, facts(still)), still) for value, flow in constant.items()}
    assert [scores.values["dynamic_degree"] for scores in degrees.values()] == [0.0, 1.0]


def test_aesthetic_quality(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    read_as(vbench["aesthetic_quality"], frames, monkeypatch)
    torch.manual_seed(0)
    clip, head = Embedding(), torch.nn.Linear(16, 1)
    expected, _ = vbench["aesthetic_quality"].laion_aesthetic(head, clip, ["a.mp4"], CPU)

    @torch.no_grad()
    def score(pixels: Tensor) -> Tensor:
        return head(torch.nn.functional.normalize(clip(pixels), dim=-1))[:, 0]

    ours = FrameScore("q", score, aesthetic_pixels, 10, 24.0)
    assert feed(ours, frames).values["q"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("zoom", [1, 2])
def test_imaging_quality(vbench: dict[str, Any], frames: Tensor, monkeypatch: pytest.MonkeyPatch, zoom: int) -> None:
    large = frames[:3].repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    read_as(vbench["imaging_quality"], large, monkeypatch)

    def score(pictures: Tensor) -> Tensor:
        return 100 * pictures.square().mean((1, 2, 3)) + pictures.shape[-1]

    expected, _ = vbench["imaging_quality"].technical_quality(score, ["a.mp4"], CPU)
    ours = FrameScore("q", score, imaging_pixels, 100, 24.0, together=False)
    assert feed(ours, large).values["q"] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(expected)

"""VBench's dimensions from DINO, RAFT, AMT-S, CLIP and MUSIQ, with VBench's preprocessing."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.media.video import read_image, resize_crop
from magicdistill_core.metrics.vbench import (
    dynamic_degree,
    flow_peak,
    flow_step,
    i2v_subject,
    subject_consistency,
)

from ..folders import Item
from ..frames import VideoFacts
from ..networks.raft import Flow, load_raft
from ..scores import Scores
from .base import Column, Measure, NotScoredError, Sampled, Start

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LONGEST = 512


def _normalised(frames: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(part).view(1, 3, 1, 1) for part in statistics)
    return (frames.float() / 255 - mean) / deviation


def consistency_pixels(frames: Tensor) -> Tensor:
    """Return frames `[n, 3, H, W]` of uint8 as VBench's subject consistency gives them to DINO."""
    from torchvision.transforms.functional import resize

    return _normalised(resize(frames, [224], antialias=False), _IMAGENET)


def subject_pixels(frames: Tensor | Image.Image) -> Tensor:
    """Return frames `[n, 3, H, W]` of uint8, or a start image, as VBench's i2v subject gives them to DINO."""
    from torchvision.transforms.functional import InterpolationMode, center_crop, pil_to_tensor, resize

    cropped = center_crop(resize(frames, [256], InterpolationMode.BICUBIC), [224, 224])
    return _normalised(pil_to_tensor(cropped)[None] if isinstance(cropped, Image.Image) else cropped, _IMAGENET)


def aesthetic_pixels(frames: Tensor) -> Tensor:
    """Return frames `[n, 3, H, W]` of uint8 as VBench gives them to CLIP."""
    from torchvision.transforms.functional import InterpolationMode, center_crop, resize

    resized = resize(frames, [224], InterpolationMode.BICUBIC, antialias=False)
    return _normalised(center_crop(resized, [224, 224]), _CLIP)


def imaging_pixels(frames: Tensor) -> Tensor:
    """Return frames `[n, 3, H, W]` of uint8 as VBench gives them to MUSIQ, in [0, 1]."""
    from torchvision.transforms.functional import resize

    height, width = frames.shape[-2:]
    if max(height, width) > _LONGEST:
        scale = _LONGEST / max(height, width)
        frames = resize(frames, [int(scale * height), int(scale * width)], antialias=False)
    return frames.float() / 255


class Subject:
    """i2v subject and subject consistency."""

    def __init__(self, embed: Callable[[Tensor], Tensor], item: Item, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            embed: a network from normalised pixels to embeddings (VBench: DINO ViT-B/16).
            item: the video and its start image.
            facts: the video's facts.
        """
        self._embed, self._rate = embed, facts.fps
        self._image: Tensor | None = None
        if item.image is not None:
            image = resize_crop(read_image(item.image), facts.height, facts.width)
            self._image = embed(subject_pixels(Image.fromarray(image.numpy()))).cpu()[0]
        self._consistency: list[Tensor] = []
        self._subject: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        pictures = frames.movedim(-1, 1)
        self._consistency.append(self._embed(consistency_pixels(pictures)).cpu())
        if self._image is not None:
            self._subject.append(self._embed(subject_pixels(pictures)).cpu())

    def finish(self) -> Scores:
        frames = torch.cat(self._consistency)
        if len(frames) < 2:
            raise NotScoredError("it has a single frame")
        cosine = torch.nn.functional.cosine_similarity(frames[:1], frames)
        values: dict[str, float | None] = {"subject_consistency": subject_consistency(frames)}
        if self._image is not None:
            values["i2v_subject"] = i2v_subject(torch.cat(self._subject), self._image)
        return Scores(values, {"subject": cosine.tolist()}, self._rate)


class Dynamics:
    """The dynamic degree."""

    def __init__(self, flow: Flow, facts: VideoFacts) -> None:
        """Begin a video.

        Args:
            flow: a network that computes optical flow (VBench: RAFT).
            facts: the video's facts.
        """
        self._flow, self._facts = flow, facts
        self._chosen = Sampled(flow_step(facts.fps))
        self._last: Tensor | None = None
        self._peaks: list[float] = []

    def add(self, frames: Tensor) -> None:
        for frame in self._chosen(frames):
            picture = frame.movedim(-1, 0)[None].float()
            if self._last is not None:
                self._peaks.append(flow_peak(self._flow(self._last, picture)))
            self._last = picture

    def finish(self) -> Scores:
        short = min(self._facts.height, self._facts.width)
        peaks = torch.tensor(self._peaks)
        rate = self._facts.fps / self._chosen.step
        return Scores({"dynamic_degree": dynamic_degree(peaks, short)}, {"flow": self._peaks}, rate)


class FrameScore:
    """The mean of a network's score of single frames."""

    def __init__(
        self,
        name: str,
        score: Callable[[Tensor], Tensor],
        pixels: Callable[[Tensor], Tensor],
        full: float,
        rate: float,
        together: bool = True,
    ) -> None:
        """Begin a video.

        Args:
            name: name of the value and of the curve.
            score: the network.
            pixels: the preprocessing of frames `[n, 3, H, W]` of uint8.
            full: the score that counts as 1.
            rate: frames per second.
            together: whether the network takes several frames at once.
        """
        self._name, self._score, self._pixels, self._full, self._rate = name, score, pixels, full, rate
        self._group = 16 if together else 1
        self._curve: list[float] = []

    def add(self, frames: Tensor) -> None:
        for part in self._pixels(frames.movedim(-1, 1)).split(self._group):
            self._curve += (self._score(part).float().cpu().flatten() / self._full).tolist()

    def finish(self) -> Scores:
        return Scores({self._name: sum(self._curve) / len(self._curve)}, {self._name: self._curve}, self._rate)


def _make_subject(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.dino import load_dino

    network = load_dino(files["dino"], device)
    return lambda item, facts: Subject(lambda pixels: network(pixels.to(device)), item, facts)


def _make_dynamics(files: Mapping[str, Path], device: torch.device) -> Start:
    flow = load_raft(files["raft"], device)
    return lambda _item, facts: Dynamics(flow, facts)


def _make_aesthetic(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.clip_aesthetic import load_aesthetic

    score = load_aesthetic(files["clip"], files["laion"], device)
    return lambda _item, facts: FrameScore("aesthetic_quality", score, aesthetic_pixels, 10, facts.fps)


def _make_imaging(files: Mapping[str, Path], device: torch.device) -> Start:
    from ..networks.others import load_musiq

    score = load_musiq(files["musiq"], device)
    return lambda _item, facts: FrameScore("imaging_quality", score, imaging_pixels, 100, facts.fps, together=False)


SUBJECT = Measure(
    "subject",
    "vbench",
    (
        Column("i2v_subject", "i2v subject", "higher", 4),
        Column("subject_consistency", "subject consistency", "higher", 4),
    ),
    _make_subject,
    ("dino",),
    uses_image=True,
)
DYNAMICS = Measure(
    "dynamic_degree", "vbench", (Column("dynamic_degree", "dynamic degree", "higher", 4),), _make_dynamics, ("raft",)
)
AESTHETIC = Measure(
    "aesthetic_quality",
    "vbench",
    (Column("aesthetic_quality", "aesthetic quality", "higher", 4),),
    _make_aesthetic,
    ("clip", "laion"),
)
IMAGING = Measure(
    "imaging_quality",
    "vbench",
    (Column("imaging_quality", "imaging quality", "higher", 4),),
    _make_imaging,
    ("musiq",),
)

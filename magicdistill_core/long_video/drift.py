"""Drift: how much the frames of a long video have changed since its beginning.

Each frame gets a few numbers. A segment is judged by its last frames; the complete video by its first 15 % against its
last 15 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .joining import late_frames

# A network that turns pictures `[N, 3, H, W]` in [0, 1] into one embedding each, `[N, D]`.
Embedder = Callable[[Tensor], Tensor]
_LEVELS = 255


@dataclass(frozen=True)
class FrameNumbers:
    """The numbers of some frames, one per frame.

    Attributes:
        red: mean of the red channel, 0 to 255.
        green: mean of the green channel.
        blue: mean of the blue channel.
        contrast: standard deviation of the brightness, 0 to 255.
        sharpness: mean absolute difference of a pixel from its four neighbours' mean, 0 to 255.
        identity: cosine of the embeddings of the frame and of the portrait; empty without a network.
    """

    red: list[float]
    green: list[float]
    blue: list[float]
    contrast: list[float]
    sharpness: list[float]
    identity: list[float] = field(default_factory=list)

    def __add__(self, other: "FrameNumbers") -> "FrameNumbers":
        mine, others = asdict(self), asdict(other)
        return FrameNumbers(**{name: mine[name] + others[name] for name in mine})


@dataclass(frozen=True)
class Drift:
    """What changed between two groups of frames.

    Attributes:
        colour: largest change of a channel's mean, in levels of 0 to 255.
        contrast: contrast of the later frames divided by that of the earlier ones.
        sharpness: the same ratio of the sharpness.
        identity: mean cosine with the portrait in the later frames; None without a network.
    """

    colour: float
    contrast: float
    sharpness: float
    identity: float | None = None

    def line(self) -> str:
        """Return the numbers as one line of text for people."""
        identity = "" if self.identity is None else f", identity {self.identity:.2f}"
        return f"colour {self.colour:.1f}, contrast {self.contrast:.0%}, sharpness {self.sharpness:.0%}{identity}"


@dataclass(frozen=True)
class Limits:
    """How much a segment's last frames may differ from the portrait before the segment is made again.

    Attributes:
        colour: largest `Drift.colour`, in levels; None for no limit.
        sharpness: smallest `Drift.sharpness`; the largest is its inverse. None for no limit.
        identity: smallest `Drift.identity`; None for no limit.
    """

    colour: float | None = None
    sharpness: float | None = None
    identity: float | None = None

    def excess(self, drift: Drift) -> float:
        """Return by what factor a segment exceeds the limits, as a number to compare segments; 0 if it is within them.

        Args:
            drift: the drift of the segment's last frames from the portrait.
        """
        found = [0.0]
        if self.colour is not None:
            found.append(drift.colour / self.colour - 1)
        if self.sharpness is not None:
            worst = min(drift.sharpness, 1 / max(drift.sharpness, 1e-6))
            found.append(self.sharpness / max(worst, 1e-6) - 1)
        if self.identity is not None and drift.identity is not None:
            found.append(self.identity - drift.identity)
        return max(found)


def numbers_of(frames_THWC: Tensor, embed: Embedder | None = None, portrait: Tensor | None = None) -> FrameNumbers:
    """Measure frames.

    Args:
        frames_THWC: `[T, H, W, 3]` in [0, 1].
        embed: a network for the identity; None leaves the identity out.
        portrait: the portrait's embedding, `[D]`; needed with `embed`.
    """
    frames = frames_THWC.float().movedim(-1, 1)
    red, green, blue = (_LEVELS * frames.mean(dim=(2, 3))).unbind(1)
    gray = frames.mean(dim=1, keepdim=True)
    around = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    neighbours = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4
    identity: list[float] = []
    if embed is not None and portrait is not None:
        identity = F.cosine_similarity(embed(frames), portrait[None]).tolist()
    return FrameNumbers(
        *(red.tolist(), green.tolist(), blue.tolist()),
        contrast=(_LEVELS * gray.flatten(1).std(dim=1)).tolist(),
        sharpness=(_LEVELS * (gray - neighbours).abs().flatten(1).mean(dim=1)).tolist(),
        identity=identity,
    )


def drift_between(earlier: FrameNumbers, later: FrameNumbers) -> Drift:
    """Return what changed from some frames to others.

    Args:
        earlier: the numbers of the earlier frames.
        later: those of the later frames.
    """
    colour = max(
        abs(_mean(one) - _mean(two))
        for one, two in ((earlier.red, later.red), (earlier.green, later.green), (earlier.blue, later.blue))
    )
    return Drift(
        colour,
        _mean(later.contrast) / max(_mean(earlier.contrast), 1e-6),
        _mean(later.sharpness) / max(_mean(earlier.sharpness), 1e-6),
        _mean(later.identity) if later.identity else None,
    )


def video_drift(numbers: FrameNumbers) -> Drift:
    """Return what changed from the first 15 % of a video's frames to the last 15 %.

    Args:
        numbers: the numbers of all its frames.
    """
    count = late_frames(len(numbers.red))
    return drift_between(first_numbers(numbers, count), last_numbers(numbers))


def first_numbers(numbers: FrameNumbers, count: int) -> FrameNumbers:
    """Return the numbers of the first `count` frames."""
    return FrameNumbers(**{name: values[:count] for name, values in asdict(numbers).items()})


def last_numbers(numbers: FrameNumbers) -> FrameNumbers:
    """Return the numbers of the last 15 % of the frames."""
    count = late_frames(len(numbers.red))
    return FrameNumbers(**{name: values[-count:] for name, values in asdict(numbers).items()})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def embedding_of(picture_HWC: Tensor, embed: Embedder) -> Tensor:
    """Return the embedding `[D]` of a picture `[H, W, 3]` in [0, 1]."""
    return embed(torch.movedim(picture_HWC.float(), -1, 0)[None])[0]

"""What the breakages are painted with: random numbers, soft masks, fills, and displaced copies of a picture."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blur import blur

Point = tuple[float, float]


@dataclass(frozen=True)
class Chance:
    """Random numbers of one breakage.

    Attributes:
        generator: a CPU generator.
    """

    generator: torch.Generator

    def uniform(self, low: float, high: float) -> float:
        """Return a number between `low` and `high`."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def sign(self) -> float:
        """Return -1 or 1."""
        return 2.0 * self.whole(0, 1) - 1

    def direction(self, low: float, high: float) -> Point:
        """Return a vector of random direction, with a length between `low` and `high`."""
        angle = torch.tensor(self.uniform(0, 2 * torch.pi))
        length = self.uniform(low, high)
        return float(length * angle.cos()), float(length * angle.sin())


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Return the x and y coordinates of the pixels of a square picture, `[1, W]` and `[H, 1]`.

    Args:
        size: width and height in pixels.
    """
    line = torch.arange(size, dtype=torch.float32)
    return line[None, :], line[:, None]


def ellipse(size: int, center: Point, radii: Point, roll: float = 0.0, softness: float = 1.5) -> Tensor:
    """Return a mask `[H, W]`: 1 inside an ellipse, 0 outside, with a soft edge.

    Args:
        size: width and height of the picture in pixels.
        center: centre (x, y) in pixels.
        radii: half width and half height in pixels.
        roll: rotation in radians.
        softness: width of the edge in pixels.
    """
    x, y = grid(size)
    dx, dy = x - center[0], y - center[1]
    cosine, sine = torch.cos(torch.tensor(roll)), torch.sin(torch.tensor(roll))
    u, v = (dx * cosine + dy * sine) / radii[0], (dy * cosine - dx * sine) / radii[1]
    distance = ((u * u + v * v).sqrt() - 1) * min(radii)
    return (0.5 - distance / softness).clamp(0, 1)


def blend(frame: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return `other` where the mask is 1 and `frame` where it is 0.

    Args:
        frame: `[3, H, W]`.
        other: shaped as `frame`, or broadcast to it.
        mask: `[H, W]` in [0, 1].
    """
    return frame + mask * (other - frame)


def filled(frame: Tensor, mask: Tensor, sigma: float = 4.0) -> Tensor:
    """Return a picture whose masked part continues its surroundings smoothly.

    Args:
        frame: `[3, H, W]`.
        mask: `[H, W]` in [0, 1]; 1 is the part to fill.
        sigma: how far the surroundings reach, in pixels.
    """
    kept = 1 - (mask > 0).float()
    weight = blur(kept[None], sigma).clamp_min(1e-3)
    return blend(frame, blur(frame * kept, sigma) / weight, mask)


def displaced(frame: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Return the picture that takes pixel (x, y) from (x - dx, y - dy). The border is continued outwards.

    Args:
        frame: `[3, H, W]`, H equal to W.
        dx: displacement to the right in pixels, broadcast to `[H, W]`.
        dy: displacement downwards in pixels, broadcast to `[H, W]`.
    """
    size = frame.shape[-1]
    x, y = grid(size)
    from_x, from_y = torch.broadcast_tensors(x - dx, y - dy)
    places = torch.stack([(from_x + 0.5) * 2 / size - 1, (from_y + 0.5) * 2 / size - 1], dim=-1)
    return F.grid_sample(frame[None], places[None], padding_mode="border", align_corners=False)[0]


def shifted(frame: Tensor, by: Point) -> Tensor:
    """Return the picture moved by (x, y) pixels. The border is continued outwards.

    Args:
        frame: `[3, H, W]`.
        by: displacement to the right and downwards.
    """
    return displaced(frame, torch.tensor(by[0]), torch.tensor(by[1]))


def smeared(frame: Tensor, by: Point) -> Tensor:
    """Return the mean of copies of the picture along a line, as if it was wiped.

    Args:
        frame: `[3, H, W]`.
        by: the line (x, y) in pixels; the copies lie on both sides.
    """
    shares = torch.linspace(-0.5, 0.5, 7).tolist()
    return torch.stack([shifted(frame, (share * by[0], share * by[1])) for share in shares]).mean(dim=0)

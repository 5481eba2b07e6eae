"""Faces that are broken in the latents, where a generator breaks them: the decoder then draws the defect."""

import torch
from torch import Tensor

from .places import Places
from .retouching import Chance, ellipse

_PIXELS = 8  # per latent cell


def break_latents(latents: Tensor, places: list[Places], generator: torch.Generator, strength: float) -> Tensor:
    """Return the latents of a clip with a region that is wrong from some latent frame on to the end.

    The region is noisy, is mixed with a neighbouring region, or keeps what the first frame shows there.

    Args:
        latents: `[16, t, h, w]`, t of at least 2.
        places: where the parts of the face are in each frame of the clip.
        generator: a CPU generator.
        strength: share of the wrong latents, above 0 and up to 1.
    """
    chance = Chance(generator)
    count, size = latents.shape[1], latents.shape[-1]
    first = chance.whole(1, count - 1)
    last = places[-1]
    points = [last.left_eye, last.right_eye, last.mouth, last.head]
    chosen = chance.whole(0, len(points))
    x, y = points[chosen] if chosen < len(points) else last.outline[chance.whole(0, len(last.outline) - 1)].tolist()
    center = (x + 0.5) / _PIXELS - 0.5, (y + 0.5) / _PIXELS - 0.5
    operation = chance.whole(0, 2)
    # A larger region from elsewhere would show a complete face again, only at another time or place.
    radius = 0.7 + (4.0 if operation == 0 else 1.8) * chance.uniform(0, 1) ** 2
    mask = strength * ellipse(size, center, (radius, radius * chance.uniform(0.7, 1.4)), softness=1.0)
    kept = latents[:, first:]
    if operation == 0:
        noise = torch.randn(kept.shape, generator=generator)
        # The variance of latents is 1. This mixture keeps it.
        changed = (1 - mask**2).sqrt() * kept + mask * noise
    else:
        other = (
            kept.roll((chance.whole(-2, 2), chance.whole(1, 2)), dims=(-2, -1)) if operation == 1 else latents[:, :1]
        )
        changed = kept + mask * (other - kept)
    return torch.cat([latents[:, :first], changed], dim=1)

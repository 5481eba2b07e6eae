"""The batches of the reader's training: whole and broken faces in equal parts, with their labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....methods.draws import keyed_generator
from ..blur import blur
from .broken import BREAKAGES, INVISIBLE, PAINTED, paint_broken, visibility
from .examples import KINDS, WHOLE, Examples
from .quantities import GAZE_SEEN, MIRRORED, MOTION, SPOILED
from .retouching import Chance

# Blur that is not a defect: at most that of a bad VAE.
_SOFTEST = 0.9
_NOISE = 0.012
_WEAKEST = 0.1

# The frames of this pool are painted.
_PAINTED_POOL = 2


@dataclass(frozen=True)
class Batch:
    """Frames with labels, and which of the labels count.

    Attributes:
        frames: `[N, 3, H, W]` in [0, 1].
        motion: true motion in the units of the renderer, `[N, 7]`.
        motion_seen: 1 where a quantity can be read, else 0, `[N, 7]`.
        identity: true attributes in the units of the renderer, `[N, D]`.
        identity_seen: 1 where the attributes can be read, else 0, `[N]`.
        whole: 1 for a whole face, 0 for a broken one, `[N]`.
        whole_known: 0 where a breakage is neither invisible nor clearly visible, else 1, `[N]`.
    """

    frames: Tensor
    motion: Tensor
    motion_seen: Tensor
    identity: Tensor
    identity_seen: Tensor
    whole: Tensor
    whole_known: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class _Frame:
    """A frame with the number of its example, and what was done to it."""

    picture: Tensor
    number: int
    kind: str | None
    visible: float
    mirrored: bool


class BatchSource:
    """Draws batches from examples. The same update draws the same batch."""

    def __init__(self, examples: Examples, seed: int) -> None:
        """Compute the labels of all examples.

        Args:
            examples: the frames; all three sorts must be among them.
            seed: seed of the batches.
        """
        self._examples = examples
        self._seed = seed
        self.motion, self.identity = examples.labels()
        whole = examples.kinds == WHOLE
        pools = (whole & ~examples.seen, whole & examples.seen, whole, ~whole)
        self._pools = [pool.nonzero()[:, 0].tolist() for pool in pools]

    def batch(self, update: int, size: int) -> Batch:
        """Return the batch of an update.

        One quarter of the frames each is rendered, seen through the VAE, painted now, and broken before the VAE.

        Args:
            update: number of the update, from 0.
            size: number of frames.
        """
        chance = Chance(keyed_generator(self._seed, "reader batch", update))
        frames = []
        for place in range(size):
            pool = self._pools[place % 4]
            number = pool[chance.whole(0, len(pool) - 1)]
            frames.append(self._frame(number, place % 4 == _PAINTED_POOL, chance))
        return self._labelled(frames)

    def _frame(self, number: int, paint: bool, chance: Chance) -> _Frame:
        examples = self._examples
        before = examples.frame(number)
        stored = int(examples.kinds[number])
        kind, visible = (None, 0.0) if stored == WHOLE else (KINDS[stored], float(examples.visible[number]))
        softness = chance.uniform(0.2, _SOFTEST) if chance.whole(0, 1) else 0.0
        picture = blur(before, softness)
        if paint:
            kind = PAINTED[chance.whole(0, len(PAINTED) - 1)]
            strength = chance.uniform(_WEAKEST, 1.0)
            painted = paint_broken(before, examples.places(number), kind, chance.generator, strength)
            before, picture = picture, blur(painted, softness)
            visible = visibility(before, picture)
        noise = torch.randn(picture.shape, generator=chance.generator) * chance.uniform(0, _NOISE)
        picture = (picture + noise).clamp(0, 1)
        mirrored = bool(chance.whole(0, 1))
        return _Frame(picture.flip(-1) if mirrored else picture, number, kind, visible, mirrored)

    def _labelled(self, frames: list[_Frame]) -> Batch:
        numbers = [frame.number for frame in frames]
        signs = torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in MOTION])
        motion = torch.stack([self.motion[f.number] * (signs if f.mirrored else 1.0) for f in frames])
        whole, known, motion_seen, identity_seen = [], [], [], []
        for frame in frames:
            broken = frame.kind is not None and frame.visible > INVISIBLE
            spoils = BREAKAGES[frame.kind].spoils if frame.kind is not None and broken else ""
            clear = not broken or (frame.kind is not None and frame.visible >= BREAKAGES[frame.kind].visible_from)
            whole.append(0.0 if broken else 1.0)
            known.append(float(clear))
            motion_seen.append([float(name not in SPOILED[spoils]) for name in MOTION])
            identity_seen.append(float(not spoils))
        return Batch(
            frames=torch.stack([frame.picture for frame in frames]),
            motion=motion,
            motion_seen=torch.tensor(motion_seen) * gaze_seen(motion),
            identity=self.identity[numbers],
            identity_seen=torch.tensor(identity_seen),
            whole=torch.tensor(whole),
            whole_known=torch.tensor(known),
        )


def gaze_seen(motion: Tensor) -> Tensor:
    """Return 0 for the gaze of closed eyes, and 1 for everything else, shaped as `motion`.

    Args:
        motion: true motion `[..., 7]` in the units of the renderer.
    """
    closed = motion[..., MOTION.index("blink")] > GAZE_SEEN
    gaze = torch.tensor([name.startswith("gaze") for name in MOTION])
    return 1 - (closed[..., None] & gaze).float()

"""The frames that the reader is trained on: as rendered, seen through the VAE, and broken before the VAE.

Rendering is cheap and brings many people. The VAE is expensive and brings the blur that the reader must not take for a
defect. The folder consists of shards, one file per group of clips, so an interrupted command continues.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import DEFAULT_FRAMES, DEFAULT_SIZE, frame_times, portrait, portrait_clip
from magicdistill_core.safetensors_file import explained_writing, read_tensors, write_safetensors

from ....data.vae import Vae, load_vae
from ....distributed import available_device
from ....methods.draws import keyed_generator
from ...dataset import to_unit_frames
from ..held_out import decode, encode
from .broken import BREAKAGES, LATENTS, PAINTED, paint_broken, visibility
from .broken_latents import break_latents
from .places import Places, places_of
from .quantities import identity_of, motion_of

# The number of a kind in `Examples.kinds`.
KINDS = tuple(BREAKAGES)
WHOLE = -1

# Seeds of their own: not those of the other pocket trainings, of datasets and of the held-out portraits.
SEEN_SEED, DRAWN_SEED = 2_000_000, 3_000_000

_INDEX = "examples.json"
_SHARD_CLIPS = 16
_DRAWN_FRAMES, _SEEN_FRAMES = 3, 6


@dataclass(frozen=True)
class Examples:
    """Frames with their labels.

    Attributes:
        frames: uint8 `[N, H, W, 3]`.
        seeds: seed of the portrait, int64 `[N]`.
        times: number of the frame in its clip, int64 `[N]`.
        seen: whether the frame was seen through the VAE, bool `[N]`.
        kinds: number in `KINDS` of the breakage, or `WHOLE`, int64 `[N]`.
        visible: visibility of the breakage, 0 without one, float32 `[N]`.
    """

    frames: Tensor
    seeds: Tensor
    times: Tensor
    seen: Tensor
    kinds: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, number: int) -> Tensor:
        """Return a frame as `[3, H, W]` in [0, 1]."""
        return self.frames[number].movedim(-1, 0).float() / 255

    def places(self, number: int) -> Places:
        """Return where the parts of the face are in a frame."""
        spec = portrait(int(self.seeds[number]))
        time = int(self.times[number])
        return places_of(spec, pose_at(spec, frame_times(DEFAULT_FRAMES)[time : time + 1]), self.frames.shape[1])[0]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return the true motion `[N, 7]` and identity `[N, D]` of all frames, in the units of the renderer."""
        motion, identity = [], []
        for seed, time in zip(self.seeds.tolist(), self.times.tolist(), strict=True):
            spec = portrait(seed)
            motion.append(motion_of(pose_at(spec, frame_times(DEFAULT_FRAMES)[time : time + 1]))[0])
            identity.append(identity_of(spec))
        return torch.stack(motion), torch.stack(identity)


def write_examples(
    folder: Path,
    seed: int,
    clips: int,
    drawn: int,
    vae_file: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:
    """Write the examples that are missing in a folder, and return all of them.

    Args:
        folder: the folder of the shards.
        seed: seed of everything random except the portraits.
        clips: clips that are seen through the VAE, whole and broken.
        drawn: clips that are only rendered.
        vae_file: the VAE, see `load_vae`.
        advance: called with (done, total), counted in clips, after each shard.

    Raises:
        ConfigError: if the folder has examples of another seed or another VAE.
        MagicDistillError: if the VAE or a shard cannot be read, or the folder cannot be written.
    """
    _check_index(folder, {"seed": seed, "vae_sha256": weights_sha256(vae_file)})
    vae = load_vae(vae_file, available_device())

    def seen_clip(portrait_seed: int) -> Examples:
        return _seen_clip(portrait_seed, seed, vae)

    def drawn_clip(portrait_seed: int) -> Examples:
        return _drawn_clip(portrait_seed, seed)

    shards = [
        (folder / f"{name}-{start:06d}-{stop:06d}.safetensors", make, range(first + start, first + stop))
        for name, make, first, count in (
            ("seen", seen_clip, SEEN_SEED, clips),
            ("drawn", drawn_clip, DRAWN_SEED, drawn),
        )
        for start in range(0, count, _SHARD_CLIPS)
        for stop in (min(start + _SHARD_CLIPS, count),)
    ]
    done, parts = 0, []
    for path, make, portraits in shards:
        if not path.is_file():
            write_safetensors(path, vars(_joined([make(portrait_seed) for portrait_seed in portraits])), {})
        parts.append(Examples(**read_tensors(path)[0]))
        done += len(portraits)
        advance(done, clips + drawn)
    return _joined(parts)


def _check_index(folder: Path, now: dict[str, int | str]) -> None:
    path = folder / _INDEX
    if not path.is_file():
        with explained_writing(path):
            write_text(path, json.dumps(now, indent=1))
        return
    before = json.loads(path.read_text())
    if changed := sorted(name for name in now if before.get(name) != now[name]):
        raise ConfigError(
            f"{folder} holds examples with another {', '.join(changed)}. Use the settings and the VAE of that run, or "
            f"choose another run folder."
        )


def _joined(parts: list[Examples]) -> Examples:
    return Examples(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _examples(
    frames: Tensor, seed: int, times: list[int], seen: bool, kind: int = WHOLE, visible: list[float] | None = None
) -> Examples:
    """Return examples of one clip; `frames` is `[n, 3, H, W]` in [0, 1]."""
    count = len(times)
    return Examples(
        frames=(frames * 255).round().to(torch.uint8).movedim(1, -1).contiguous(),
        seeds=torch.full((count,), seed),
        times=torch.tensor(times),
        seen=torch.full((count,), seen),
        kinds=torch.full((count,), kind),
        visible=torch.tensor(visible) if visible is not None else torch.zeros(count),
    )


def _times(count: int, first: int, generator: torch.Generator) -> list[int]:
    """Draw frames of a clip, from `first` on."""
    drawn = torch.randperm(DEFAULT_FRAMES - first, generator=generator)[:count]
    return sorted((first + drawn).tolist())


def _drawn_clip(portrait_seed: int, seed: int) -> Examples:
    times = _times(_DRAWN_FRAMES, 0, keyed_generator(seed, "drawn times", portrait_seed))
    frames = to_unit_frames(portrait_clip(portrait_seed, DEFAULT_FRAMES, DEFAULT_SIZE))
    return _examples(frames[times], portrait_seed, times, seen=False)


def _seen_clip(portrait_seed: int, seed: int, vae: Vae) -> Examples:
    """Return examples of a clip that was seen through the VAE, once whole and once broken."""
    spec = portrait(portrait_seed)
    places = places_of(spec, pose_at(spec, frame_times(DEFAULT_FRAMES)), DEFAULT_SIZE)
    frames = to_unit_frames(portrait_clip(portrait_seed, DEFAULT_FRAMES, DEFAULT_SIZE))
    generator = keyed_generator(seed, "broken clip", portrait_seed)
    strength = 0.1 + 0.9 * float(torch.rand((), generator=generator))
    latents = encode(vae, frames[None])
    if portrait_seed % 2:
        kind = PAINTED[int(torch.randint(len(PAINTED), (), generator=generator))]
        painted = paint_clip(frames, places, kind, (seed, "painted clip", portrait_seed), strength)
        broken_latents = encode(vae, painted[None])
    else:
        kind = LATENTS
        broken_latents = break_latents(latents[0], places, generator, strength)[None]
    whole, broken = decode(vae, torch.cat([latents, broken_latents]))
    times = _times(_SEEN_FRAMES, 0, generator)
    # A breakage of the latents begins at any latent frame but the first, so the late frames have most of it.
    late = _times(_SEEN_FRAMES, DEFAULT_FRAMES // 2, generator)
    visible = [visibility(whole[time], broken[time]) for time in late]
    return _joined(
        [
            _examples(whole[times], portrait_seed, times, seen=True),
            _examples(broken[late], portrait_seed, late, True, KINDS.index(kind), visible),
        ]
    )


def paint_clip(frames: Tensor, places: list[Places], kind: str, key: tuple[str | int, ...], strength: float) -> Tensor:
    """Return a clip with the same breakage on every frame. It follows the face.

    Args:
        frames: `[T, 3, H, W]` in [0, 1].
        places: where the parts of the face are in each frame.
        kind: a name of `PAINTED`.
        key: key of the random numbers, see `keyed_generator`.
        strength: see `paint_broken`.
    """
    pairs = zip(frames, places, strict=True)
    return torch.stack([paint_broken(frame, place, kind, keyed_generator(*key), strength) for frame, place in pairs])

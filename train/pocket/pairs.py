"""Blind comparison by eye: pairs of samples side by side in a shuffled order, and the count of what was chosen.

Both models of a pair continue the same start image from the same noise. Which one is on the left is in a file of its
own, the key, which the viewer does not open.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text
from magicdistill_core.geometry import unit_to_frames
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.metrics.binomial import binomial_interval
from magicdistill_core.pocket.files import SIZE

from ..data.vae import load_vae
from ..distributed import available_device
from .dataset import HELD_OUT_SEED, render_clips, to_unit_frames
from .measuring.contenders import Contender, load_contender, sample
from .measuring.held_out import decode, encode

KEY_FILE = "key.json"
# Start images that the tables do not show, so that nobody has seen them on a contact sheet.
_FIRST_SEED = HELD_OUT_SEED + 100_000
_FRAMES = 5
_ZOOM = 2
_GAP, _MARGIN = 8, 28


@dataclass(frozen=True)
class Choice:
    """The count of a blind comparison.

    Attributes:
        first: number of pairs in which the first model was chosen.
        pairs: number of pairs.
        text: the result in words, with its 95 % interval.
    """

    first: int
    pairs: int
    text: str


def write_pairs(
    first: Contender,
    second: Contender,
    vae_file: Path,
    out: Path,
    pairs: int,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write one picture per pair, `pair-01.jpg` and so on, and the key.

    Args:
        first: one model.
        second: the other model.
        vae_file: the video autoencoder of both.
        out: the folder; it must not have a key yet.
        pairs: number of pairs.
        seed: seed of the order.
        advance: called with the number of samples after each batch of them.

    Raises:
        ConfigError: if the folder has pairs already.
        CheckpointError: if a file is unusable or has no recipe.
    """
    if (out / KEY_FILE).exists():
        raise ConfigError(f"{out} has pairs already. Reveal them with --reveal, or choose another folder with --out.")
    for contender in (first, second):
        load_contender(contender)
    vae = load_vae(vae_file, available_device())
    seeds = range(_FIRST_SEED, _FIRST_SEED + pairs)
    # The first frame of a portrait is the same at every length of the clip.
    starts = torch.stack(list(render_clips(seeds, 1, SIZE)))
    images = encode(vae, to_unit_frames(starts))
    clips = [sample(contender, images, range(1), advance=advance)[:, 0] for contender in (first, second)]
    order = torch.rand(pairs, generator=torch.Generator().manual_seed(seed)) < 0.5
    out.mkdir(parents=True, exist_ok=True)
    for number, swapped in enumerate(order.tolist()):
        shown = [unit_to_frames(decode(vae, latents[number : number + 1])) for latents in clips]
        left, right = reversed(shown) if swapped else shown
        side_by_side(left, right).save(out / f"pair-{number + 1:02d}.jpg", quality=92)
    key = {
        "first": _facts(first),
        "second": _facts(second),
        "seed": seed,
        "left": ["second" if swapped else "first" for swapped in order.tolist()],
    }
    write_text(out / KEY_FILE, json.dumps(key, indent=1) + "\n")


def _facts(contender: Contender) -> dict[str, object]:
    return {"name": contender.name, "steps": contender.steps, "sha256": weights_sha256(contender.file)}


def side_by_side(left: Tensor, right: Tensor) -> Image.Image:
    """Draw two clips next to each other, each as a row of frames that ends with its last one.

    Args:
        left: uint8 `[T, H, W, 3]`.
        right: shaped as `left`.
    """
    picked = torch.linspace(0, len(left) - 1, _FRAMES).round().int().tolist()
    height, width = (_ZOOM * size for size in left.shape[1:3])
    half = _FRAMES * width
    sheet = Image.new("RGB", (2 * half + 5 * _GAP, height + _MARGIN + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for name, clip, x in (("L", left, _GAP), ("R", right, half + 4 * _GAP)):
        draw.text((x + half // 2, 4), name, fill="black", font=font)
        for column, index in enumerate(picked):
            frame = Image.fromarray(clip[index].numpy()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(frame, (x + column * width, _MARGIN))
    return sheet


def reveal(out: Path, choices: str) -> Choice:
    """Count how often the first model was chosen.

    Args:
        out: the folder of the pairs.
        choices: one letter per pair, `L` for left or `R` for right, in the order of the pairs.

    Raises:
        ConfigError: if the folder has no key, or the choices do not fit it.
    """
    path = out / KEY_FILE
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        left: Sequence[str] = key["left"]
        names = [f"{key[place]['name']} ({key[place]['steps']} steps)" for place in ("first", "second")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not the key of pairs ({error!r}). Name the folder of the pairs with --out."
        ) from error
    letters = choices.strip().upper()
    if len(letters) != len(left) or set(letters) - set("LR"):
        raise ConfigError(
            f"The choices are {choices!r}. Expected {len(left)} letters, L or R, one for each pair of {out}."
        )
    chosen = sum((letter == "L") == (side == "first") for letter, side in zip(letters, left, strict=True))
    share = binomial_interval(chosen, len(left))
    return Choice(
        chosen,
        len(left),
        f"{names[0]} was chosen in {chosen} of {len(left)} pairs against {names[1]}: {100 * share.mean:.0f} % "
        f"(95 % interval {100 * share.low:.0f} % to {100 * share.high:.0f} %).",
    )

"""Which size a video gets: what is set, what the recipe says, or the bucket that fits the start image."""

from dataclasses import dataclass
from math import isfinite

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.families.base import Family
from ..magicdistill_core.geometry import check_geometry, nearest_length, nearest_side
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.sizes import USUAL_SIZES, VideoSize, best_bucket

FROM_RECIPE, FIT_IMAGE = "recipe", "fit the image"


@dataclass(frozen=True)
class Wish:
    """What a person sets; 0 leaves it to the recipe, or to the image where `resolution` says so."""

    width: int
    height: int
    length: int
    seconds: float
    resolution: str


def choose_size(
    wish: Wish, recipe: Recipe | None, family: Family, rows: int, columns: int
) -> tuple[VideoSize, list[str]]:
    """The size of a video, and what is to be said about it.

    Args:
        rows, columns: of the start image.

    Raises:
        VideoError: if something is left to a recipe that is not there, or the result is no possible size.
    """
    if not isfinite(wish.seconds):
        raise VideoError(f"A length of {wish.seconds} seconds is no length. Set seconds to 0 to use length instead.")
    fits = wish.resolution == FIT_IMAGE
    complete = wish.width and wish.height and wish.length
    if recipe is None and not complete and not fits:
        raise VideoError(
            f"Width, height and length cannot be taken from the model, because its file carries no recipe. Set all "
            f"three in Portrait to video (for example 960, 544 and 129), or resolution to {FIT_IMAGE!r}, which assumes "
            f"what {family.architecture.title} was trained on."
        )
    notes = []
    if recipe is not None:
        own = VideoSize(recipe.width, recipe.height, recipe.frames, recipe.fps)
    else:
        own = USUAL_SIZES[family.architecture.name]
        if not complete or wish.seconds:
            notes.append(
                f"the model carries no recipe: where nothing is set, an area of {own.width} x {own.height}, "
                f"{own.frames} frames and {own.fps:g} fps are assumed."
            )
    width, height = wish.width or own.width, wish.height or own.height
    if fits:
        width, height = _fitted(wish, own, rows, columns)
    frames = wish.length or own.frames
    if wish.seconds:
        frames = nearest_length(wish.seconds * own.fps)
        if wish.length:
            notes.append(f"length is {wish.length}, but seconds is set too, and counts.")
    check_geometry(frames, height, width)
    return VideoSize(width, height, frames, own.fps), notes


def _fitted(wish: Wish, own: VideoSize, rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the image's aspect, a side that is set staying as it is."""
    if wish.width or wish.height:
        width = wish.width or nearest_side(wish.height * columns / rows)
        return width, wish.height or nearest_side(wish.width * rows / columns)
    height, width = best_bucket(rows, columns, own.width * own.height)
    return width, height

"""Choose the size of a video: the values set, the recipe's values, or the size that fits the start image."""

from dataclasses import dataclass
from math import isfinite

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.families.base import Family
from ..magicdistill_core.geometry import check_geometry, nearest_length, nearest_side
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.sizes import USUAL_SIZES, VideoSize, best_bucket

FROM_RECIPE, FIT_IMAGE = "recipe", "fit the image"


@dataclass(frozen=True)
class SizeInputs:
    """The size inputs of the node *Portrait to video*.

    Attributes:
        width: in pixels; 0 follows `resolution`.
        height: in pixels; 0 follows `resolution`.
        length: number of frames, rounded to 4n + 1; 0 uses the recipe's.
        seconds: length in seconds, which replaces `length`; 0 uses `length`.
        resolution: `FROM_RECIPE` or `FIT_IMAGE`.
    """

    width: int
    height: int
    length: int
    seconds: float
    resolution: str


def choose_size(
    inputs: SizeInputs, recipe: Recipe | None, family: Family, rows: int, columns: int
) -> tuple[VideoSize, list[str]]:
    """Return the size of a video, and notes about assumptions.

    Args:
        inputs: the values set on the node.
        recipe: the model's recipe; None if it has none.
        family: determines the usual size if there is no recipe.
        rows: height of the start image in pixels.
        columns: width of the start image in pixels.

    Raises:
        VideoError: if a value is missing and there is no recipe, or if the model cannot generate the size.
    """
    if not isfinite(inputs.seconds):
        raise VideoError(
            f"The length in seconds is {inputs.seconds}, expected a finite number. Set seconds to 0 to use length."
        )
    fits = inputs.resolution == FIT_IMAGE
    complete = inputs.width and inputs.height and inputs.length
    if recipe is None and not complete and not fits:
        raise VideoError(
            f"Width, height and length cannot be taken from the model, because its file carries no recipe. Set all "
            f"three in Portrait to video (for example 960, 544 and 129), or set resolution to {FIT_IMAGE!r}, which "
            f"assumes the usual size of {family.architecture.title}."
        )
    notes = []
    if recipe is not None:
        own = VideoSize(recipe.width, recipe.height, recipe.frames, recipe.fps)
    else:
        own = USUAL_SIZES[family.architecture.name]
        if not complete or inputs.seconds:
            notes.append(
                f"the model carries no recipe: for unset inputs, an area of {own.width} x {own.height}, "
                f"{own.frames} frames and {own.fps:g} fps are assumed."
            )
    width, height = inputs.width or own.width, inputs.height or own.height
    if fits:
        width, height = _fitted(inputs, own, rows, columns)
    frames = own.frames
    if inputs.length:
        frames = nearest_length(inputs.length)
        if frames != inputs.length and not inputs.seconds:
            notes.append(f"length is {inputs.length}, but videos have 4n + 1 frames: it was rounded to {frames}.")
    if inputs.seconds:
        frames = nearest_length(inputs.seconds * own.fps)
        if inputs.length:
            notes.append(f"length is {inputs.length}, but seconds is set too: seconds is used.")
    check_geometry(frames, height, width)
    return VideoSize(width, height, frames, own.fps), notes


def _fitted(inputs: SizeInputs, own: VideoSize, rows: int, columns: int) -> tuple[int, int]:
    """Return width and height in the aspect ratio of the image; a side that is set keeps its value."""
    if inputs.width or inputs.height:
        width = inputs.width or nearest_side(inputs.height * columns / rows)
        return width, inputs.height or nearest_side(inputs.width * rows / columns)
    height, width = best_bucket(rows, columns, own.width * own.height)
    return width, height

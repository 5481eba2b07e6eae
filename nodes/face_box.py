"""The face that ComfyUI's detection nodes found in a start image, out of the forms in which boxes travel."""

from collections.abc import Sequence
from math import isfinite

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.media.video import Box

# One image's boxes, those of each image of a batch, or a single box; each a dictionary in pixels.
Boxes = dict | list[dict] | list[list[dict]]


def face_in(boxes: Boxes, rows: int, columns: int) -> tuple[Box | None, list[str]]:
    """The largest face of the first image, and what is to be said about the choice.

    Where boxes are labelled, those of faces come before others (persons, say).

    Args:
        rows, columns: of the picture that the boxes are of.

    Raises:
        VideoError: if a box is malformed or lies outside of the picture.
    """
    parsed = [(_box(given, rows, columns), _is_face(given)) for given in _of_first_image(boxes)]
    faces = [box for box, is_face in parsed if is_face] or [box for box, _ in parsed]
    if not faces:
        return None, ["no face was found in the start image, so it is cropped without one."]
    notes = [f"{len(faces)} boxes were given; the largest is followed."] if len(faces) > 1 else []
    return max(faces, key=lambda box: box.width * box.height), notes


def _of_first_image(boxes: Boxes) -> Sequence[object]:
    """The boxes of the first image as they came: nothing is known yet of what another pack put into them."""
    if not isinstance(boxes, list):
        return [boxes]
    first = boxes[0] if boxes else None
    return first if isinstance(first, list) else boxes


def _is_face(given: object) -> bool:
    return isinstance(given, dict) and given.get("label") == "face"


def _box(given: object, rows: int, columns: int) -> Box:
    names = ("x", "y", "width", "height")
    said = [given.get(name) for name in names] if isinstance(given, dict) else []
    values = [value for value in said if isinstance(value, int | float) and isfinite(value)]
    if len(values) != len(names):
        raise VideoError(
            f"A face box is {str(given)[:100]}, expected x, y, width and height in pixels. Connect the output bboxes "
            f"of a detection node."
        )
    box = Box(*values)
    inside = box.x < columns and box.y < rows and box.x + box.width > 0 and box.y + box.height > 0
    if box.width <= 0 or box.height <= 0 or not inside:
        raise VideoError(
            f"A face box of {box.width:g} x {box.height:g} pixels at ({box.x:g}, {box.y:g}) is not inside the start "
            f"image of {columns} x {rows}. Connect the same image to the detection node and to Portrait to video."
        )
    return box

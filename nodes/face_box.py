"""The face that ComfyUI's detection nodes found in a start image, out of the forms in which boxes travel."""

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
    found = boxes if isinstance(boxes, list) else [boxes]
    if found and isinstance(found[0], list):
        found = found[0]
    parsed = [(_box(box, rows, columns), box) for box in found]
    faces = [box for box, given in parsed if given.get("label") == "face"] or [box for box, _ in parsed]
    if not faces:
        return None, ["no face was found in the start image, so it is cropped without one."]
    notes = [f"{len(faces)} boxes were given; the largest is followed."] if len(faces) > 1 else []
    return max(faces, key=lambda box: box.width * box.height), notes


def _box(given: object, rows: int, columns: int) -> Box:
    names = ("x", "y", "width", "height")
    values = [given.get(name) for name in names] if isinstance(given, dict) else []
    if not values or not all(isinstance(value, int | float) and isfinite(value) for value in values):
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

"""Choose the face box that the crop of a start image follows, from the outputs of ComfyUI's detection nodes."""

from collections.abc import Sequence
from math import isfinite

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.media.video import Box

# A single box, the boxes of one image, or the boxes of each image of a batch. A box is a dictionary in pixels.
Boxes = dict | list[dict] | list[list[dict]]


def face_in(boxes: Boxes, rows: int, columns: int) -> tuple[Box | None, list[str]]:
    """Return the largest face of the first image, and notes about the choice.

    Boxes labelled as faces are preferred to others (for example, persons).

    Args:
        boxes: the output of a detection node, in pixels of the start image.
        rows: height of the start image in pixels.
        columns: width of the start image in pixels.

    Returns:
        The box, or None if there is no box, and the notes for the user.

    Raises:
        VideoError: if a box is malformed or outside the image.
    """
    parsed = [(_parse_box(value, rows, columns), _is_face(value)) for value in _first_image_boxes(boxes)]
    faces = [box for box, is_face in parsed if is_face] or [box for box, _ in parsed]
    if not faces:
        return None, ["no face was found in the start image: the crop does not follow a face."]
    notes = [f"{len(faces)} face boxes are connected: the crop follows the largest."] if len(faces) > 1 else []
    return max(faces, key=lambda box: box.width * box.height), notes


def _first_image_boxes(boxes: Boxes) -> Sequence[object]:
    """Return the boxes of the first image, unchecked: another pack may have put anything into them."""
    if not isinstance(boxes, list):
        return [boxes]
    first = boxes[0] if boxes else None
    return first if isinstance(first, list) else boxes


def _is_face(value: object) -> bool:
    return isinstance(value, dict) and value.get("label") == "face"


def _parse_box(value: object, rows: int, columns: int) -> Box:
    names = ("x", "y", "width", "height")
    fields = [value.get(name) for name in names] if isinstance(value, dict) else []
    numbers = [field for field in fields if isinstance(field, int | float) and isfinite(field)]
    if len(numbers) != len(names):
        raise VideoError(
            f"A face box is {str(value)[:100]}, expected x, y, width and height in pixels. Connect the output bboxes "
            f"of a detection node."
        )
    box = Box(*numbers)
    inside = box.x < columns and box.y < rows and box.x + box.width > 0 and box.y + box.height > 0
    if box.width <= 0 or box.height <= 0 or not inside:
        raise VideoError(
            f"A face box of {box.width:g} x {box.height:g} pixels at ({box.x:g}, {box.y:g}) is not inside the start "
            f"image of {columns} x {rows}. Connect the same image to the detection node and to Portrait to video."
        )
    return box

"""Find out whether ComfyUI's Load Image has dropped the transparency of a picture.

Its IMAGE has no alpha channel: it contains the colours that a transparent picture hides. Only the file tells.
"""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
from PIL import Image, ImageChops, UnidentifiedImageError

from ..magicdistill_core.media.video import flattened

_LOADERS = ("LoadImage", "LoadImageOutput")
_IMAGE, _MASK = 0, 1


def hidden_colours_note(prompt: dict | None, node_id: str | None, name: str) -> str | None:
    """Return a note if an input's picture comes from a Load Image that shows hidden colours; else None.

    There is no note if the MASK of Load Image is connected: the workflow then handles the transparency itself.

    Args:
        prompt: the running graph: class and inputs of each node by id. None if it is unknown.
        node_id: the id of the node with the input.
        name: the name of the input.
    """
    if prompt is None or node_id not in prompt:
        return None
    links = [link for node in prompt.values() for link in node["inputs"].values() if isinstance(link, list)]
    for loader in _loaders(prompt, prompt[node_id]["inputs"].get(name)):
        file = prompt[loader]["inputs"].get("image")
        if isinstance(file, str) and [loader, _MASK] not in links and _hides_colours(file):
            return (
                f"{Path(file).name} is transparent in parts. Load Image drops the transparency, so the colours hidden "
                f"there become visible. To get white there, as in training, connect IMAGE and MASK of Load Image to "
                f"Join Image with Alpha, and its output here."
            )
    return None


def _loaders(prompt: dict, link: object) -> Iterator[str]:
    """Yield the ids of the Load Image nodes whose IMAGE reaches a link."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop()
        if not isinstance(link, list) or link[0] not in prompt or link[0] in seen:
            continue
        if prompt[link[0]]["class_type"] in _LOADERS:
            if link[1] == _IMAGE:
                yield link[0]
            continue
        seen.add(link[0])
        waiting += prompt[link[0]]["inputs"].values()


def _hides_colours(file: str) -> bool:
    """Return whether a file of ComfyUI's folders looks different on white than without its transparency."""
    try:
        with Image.open(folder_paths.get_annotated_filepath(file)) as image:
            if not image.has_transparency_data:
                return False
            return ImageChops.difference(flattened(image), image.convert("RGB")).getbbox() is not None
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False

"""What several workflows end or begin with."""

from typing import Any

from .graph import Graph, Node, Wire
from .models import CLIP_L, LLAVA_TEXT, LLAVA_VISION

NOTE_WIDTH = 400
# Heights kept free for what a node says after a run, and for a preview, a video or a picture that it shows.
SAID, SHOWN = 70, 320


def save(
    graph: Graph,
    frames: Node | Wire,
    record: Wire | None,
    fps: float,
    prefix: str = "video/portrait",
    picture: Node | None = None,
) -> None:
    """The last column: the video, and a picture of it where there is one."""
    with graph.column("Result"):
        given: dict[str, Any] = {"video": frames, "fps": fps, "filename_prefix": prefix} | (
            {"record": record} if record else {}
        )
        graph.node("MagicDistillSaveVideo", room=SAID + SHOWN, **given)
        if picture is not None:
            graph.node("SaveImage", room=SHOWN, images=picture, filename_prefix=prefix)


def photograph(graph: Graph) -> Node:
    """The start image; ComfyUI brings the picture that is chosen at first."""
    return graph.node("LoadImage", "Your portrait", room=SHOWN, image="example.png")


def llava(graph: Graph) -> tuple[Node, Node]:
    """HunyuanVideo's pair of text encoders, and the vision tower of the language model among them."""
    text = graph.node(
        "DualCLIPLoader",
        models=(CLIP_L, LLAVA_TEXT),
        clip_name1=CLIP_L.name,
        clip_name2=LLAVA_TEXT.name,
        type="hunyuan_video",
    )
    return text, graph.node("CLIPVisionLoader", models=(LLAVA_VISION,), clip_name=LLAVA_VISION.name)
